"""Mutual learning: peers train beside the student, teach it, and leave nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, SegmentationModel, load_checkpoint
from ultralytics.utils import DEFAULT_CFG
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.torch_utils import ModelEMA

from distill import yolo
from distill.errors import DistillError
from distill.losses import Activations
from distill.peers import MutualLearning, check_peers, parse_peers

Arguments = Callable[..., list[str]]
ReadResults = Callable[[Path], list[dict[str, str]]]
PEERS = ["--peers", "yolov8n.yaml,yolo11n.yaml", "--epochs", "2", "--losses", "response=0.5,ld=0.5"]
BATCH = {
    "img": torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    "batch_idx": torch.tensor([0.0, 1.0]),
    "cls": torch.tensor([[0.0], [1.0]]),
    "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.3, 0.2]]),
}


@pytest.fixture
def trainer() -> Any:
    """What ultralytics' trainer looks like to a callback, with two peers prepared."""
    torch.manual_seed(0)
    model = DetectionModel("yolov8n.yaml", nc=2, verbose=False)
    model.args = DEFAULT_CFG
    data = {"names": {0: "red", 1: "blue"}, "nc": 2, "channels": 3}
    found = SimpleNamespace(model=model, data=data, device=torch.device("cpu"), args=DEFAULT_CFG, epoch=0, epochs=10)
    learning = MutualLearning(("yolov8n.yaml", "yolov8n.yaml"), {"response": 2.0, "ld": 0.5}, 1.0, seed=3)
    before = torch.get_rng_state()
    found.prepared_distillation = learning.prepare(found)
    assert torch.equal(torch.get_rng_state(), before)  # the student draws what it would draw alone
    learning(found)
    return found


def test_each_learns_from_its_labels_and_from_the_mean_of_the_others(trainer: Any) -> None:
    prepared = trainer.prepared_distillation
    trainer.model.train()
    loss, parts = trainer.model(BATCH)
    assert list(parts) == ["box_loss", "cls_loss", "dfl_loss", "kd_response", "kd_ld", "peer_1", "peer_2"]
    assert float(loss.detach().sum()) == pytest.approx(2 * sum(float(v) for v in parts.values()), rel=1e-5)
    networks = [trainer.model, *prepared.peers]
    with torch.no_grad():
        raw = [Activations.of_head(network(BATCH["img"])) for network in networks]
    for own, other in ((0, (1, 2)), (1, (0, 2)), (2, (0, 1))):
        costs = {
            name: weight * sum(float(prepared.losses[name](raw[own], raw[k])) for k in other) / 2
            for name, weight in (("response", 2.0), ("ld", 0.5))
        }
        if own == 0:
            assert float(parts["kd_response"]) == pytest.approx(costs["response"], rel=1e-3)
            assert float(parts["kd_ld"]) == pytest.approx(costs["ld"], rel=1e-3)
        else:
            task = v8DetectionLoss(networks[own])(networks[own](BATCH["img"]), BATCH)[0].detach().sum() / 2
            assert float(parts[f"peer_{own}"]) == pytest.approx(float(task) + sum(costs.values()), rel=1e-3)


def test_nobody_is_changed_by_what_another_learns_from_it(trainer: Any) -> None:
    networks = [trainer.model, *trainer.prepared_distillation.peers]
    trainer.model.train()
    for learner, elements in ((0, slice(0, 5)), (1, slice(5, 6)), (2, slice(6, 7))):
        for network in networks:
            network.zero_grad(set_to_none=True)
        trainer.model(BATCH)[0][elements].sum().backward()
        moved = [any(p.grad is not None and bool(p.grad.any()) for p in network.parameters()) for network in networks]
        assert moved == [k == learner for k in range(3)]


def test_peers_begin_apart_and_no_copy_of_the_student_carries_them(trainer: Any) -> None:
    first, second = (peer.model[0].conv.weight for peer in trainer.prepared_distillation.peers)
    assert not torch.equal(first, second)
    assert not torch.equal(first, trainer.model.model[0].conv.weight)
    assert type(ModelEMA(trainer.model).ema.criterion) is v8DetectionLoss
    _, parts = trainer.model.eval().loss(BATCH)
    assert list(parts) == ["box_loss", "cls_loss", "dfl_loss"]


def test_a_peers_gradient_is_clipped_as_the_students(trainer: Any) -> None:
    prepared = trainer.prepared_distillation
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.0)
    prepared.add_to(optimizer, lambda network: torch.optim.SGD(network.parameters(), lr=0.1))
    assert [len(group["params"]) for group in optimizer.param_groups[1:]] == [
        len(list(peer.parameters())) for peer in prepared.peers
    ]
    for parameter in prepared.peers.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    optimizer.step()
    for peer in prepared.peers:
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in peer.parameters()]))
        assert float(norm) == pytest.approx(10.0, rel=1e-4)


def test_a_resumed_run_with_peers_equals_the_uninterrupted_one_and_publishes_the_student_alone(
    arguments: Arguments,
    read_results: ReadResults,
    interrupt_after: Callable[[int], pytest.MonkeyPatch],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def begin(out: Path) -> list[str]:
        return [*arguments(out, plain=True), *PEERS]

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert yolo.main(begin(whole)) == 0
    assert "learned with 2 peers" in capsys.readouterr().out
    patch = interrupt_after(1)
    assert yolo.main(begin(cut)) == 130
    patch.undo()
    state = torch.load(cut / "train" / "weights" / "state.pt", weights_only=True)
    assert {key.split(".")[0] for key in state["projectors"]} == {"0", "1"}
    assert yolo.main(["--resume", str(cut)]) == 0
    rows = read_results(cut)
    assert rows == read_results(whole)
    assert all(float(row[f"train/{name}"]) > 0 for row in rows for name in ("kd_response", "kd_ld", "peer_1", "peer_2"))
    assert not [column for column in rows[0] if column.startswith(("val/kd_", "val/peer_"))]
    ours, theirs = (load_checkpoint(o / "train/weights/last.pt")[0].state_dict() for o in (cut, whole))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    student = json.loads((whole / "student" / "student.json").read_text())
    assert (student["peers"], student["teacher"]) == (["yolov8n.yaml", "yolo11n.yaml"], None)
    plain = DetectionModel("yolov8n.yaml", nc=2, verbose=False).state_dict()
    assert YOLO(whole / "student" / "student.pt").model.state_dict().keys() == plain.keys()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--peers", "0"], "expected a number from 1 on"),
        (["--peers", "yolov8n-p2.yaml"], "peer yolov8n-p2.yaml: peer and student differ in strides"),
        (["--peers", "1", "--losses", "cwd=1"], "peers cannot learn by cwd: give --losses out of response"),
        (["--peers", "1", "--losses", "none"], "peers cannot learn by none"),
        (["--peers", "1", "--teacher", "t.pt"], "--peers teach each other, without --teacher"),
        (["--peers", "2", "--views", "2"], "--views needs a teacher"),
    ],
)
def test_what_makes_no_peers_is_refused_before_anything_is_written(
    changed: list[str], words: str, arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert yolo.main([*arguments(tmp_path / "run", plain=True), "--losses", "response", *changed]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_peers_that_segment_are_refused() -> None:
    student = SegmentationModel("yolov8n-seg.yaml", nc=2, verbose=False)
    with pytest.raises(DistillError, match="--peers are detectors"):
        check_peers(student, ("yolov8n-seg.yaml",), {"names": {0: "red", 1: "blue"}, "nc": 2, "channels": 3})


def test_peers_of_one_checkpoint_are_refused_because_nothing_would_part_them() -> None:
    assert parse_peers("2", "yolov8n.yaml") == ("yolov8n.yaml", "yolov8n.yaml")
    assert parse_peers("yolov8s.pt,yolov8n.yaml", "yolov8n.pt") == ("yolov8s.pt", "yolov8n.yaml")
    for text, student in (("1", "yolov8n.pt"), ("a.pt,a.pt", "yolov8n.yaml"), ("a.pt", "a.pt")):
        with pytest.raises(DistillError, match="would stay equal"):
            parse_peers(text, student)
