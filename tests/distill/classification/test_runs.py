"""Exact resuming, pairing by seed, early stopping and several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="distillation needs the [train] extra")
pytest.importorskip("torchvision", reason="distillation needs the [train] extra")
pytest.importorskip("ultralytics", reason="distillation needs the [train] extra")


from distill import classify  # noqa: E402
from distill.classification.augment import Augmentation  # noqa: E402
from distill.classification.folders import open_image_folder  # noqa: E402
from distill.classification.lessons import Precision, TrainingImages  # noqa: E402
from distill.classification.pixels import Frame, Pixels  # noqa: E402
from distill.classification.stage import Stage  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[3]
TEACHER, STUDENT = "cnn-12-24", "cnn-6-12"


def _interrupt_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meet Ctrl-C once so many epochs, of all stages, have been written."""
    write, count = Stage.write_state, [0]

    def write_and_interrupt(self: Stage, *arguments: Any) -> None:
        write(self, *arguments)
        count[0] += 1
        if count[0] == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "write_state", write_and_interrupt)


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize(
    ("method", "after", "settings"),
    [
        ("crd", 3, ("views=2",)),  # its memory is a buffer, and its negatives are drawn
        ("kd", 1, ("ema=0.9", "optimizer=sgd", "lr=0.002")),
        ("sub-teachers", 4, ("holdout=0.2",)),  # the teacher draws too
        ("takd", 8, ()),  # in the middle of the chain
        ("fitnets", 1, ("views=2",)),
        ("mutual", 3, ()),
    ],
)
def test_an_interrupted_run_goes_on_bit_for_bit(
    method: str,
    after: int,
    settings: tuple[str, ...],
    arguments: Callable[..., list[str]],
    teacher_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [*(("--set", *settings) if settings else ())]
    whole = arguments(tmp_path / "whole", *flags, method=method, teachers=(str(teacher_run),))
    assert classify.main(whole) == 0
    with monkeypatch.context() as patch:
        _interrupt_after(after, patch)
        halved = arguments(tmp_path / "halved", *flags, method=method, teachers=(str(teacher_run),))
        assert classify.main(halved) == 130
    assert f"--resume {tmp_path / 'halved'}" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "halved" / "student").exists()
    torch.manual_seed(99)  # whatever ran before
    assert classify.main(["--resume", str(tmp_path / "halved"), "--device", "cpu"]) == 0
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(f"--int8 --student {tmp_path / 'halved'}")
    for file in ("training/student/results.csv", "training/student/weights.pt"):
        ours, theirs = tmp_path / "halved" / file, tmp_path / "whole" / file
        if file.endswith(".csv"):
            assert ours.read_text() == theirs.read_text()
        else:
            a, b = (torch.load(p, weights_only=True) for p in (ours, theirs))
            assert all(torch.equal(a[key], b[key]) for key in b)


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize(("method", "after"), [("ensemble-features", 12), ("sftn", 6)])
def test_a_run_stopped_between_teacher_and_student_goes_on_bit_for_bit(
    method: str, after: int, arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that the method draws after its teachers were trained are the same when these are only loaded."""
    assert classify.main(arguments(tmp_path / "whole", method=method)) == 0
    torch.manual_seed(7)  # whatever ran before
    with monkeypatch.context() as patch:
        _interrupt_after(after, patch)
        assert classify.main(arguments(tmp_path / "halved", method=method)) == 130
    assert not (tmp_path / "halved" / "training" / "student").exists()
    torch.manual_seed(99)
    assert classify.main(["--resume", str(tmp_path / "halved"), "--device", "cpu"]) == 0
    one, other = (torch.load(tmp_path / n / "student" / "weights.pt", weights_only=True) for n in ("whole", "halved"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.usefixtures("quick_export")
def test_the_same_seed_trains_the_same_student_and_another_does_not(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    weights = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        assert classify.main(arguments(out, "--seed", str(seed), "--epochs", "2", method="none")) == 0
        weights.append(torch.load(out / "student" / "weights.pt", weights_only=True)["fc.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.usefixtures("quick_export")
def test_methods_start_from_the_same_student_and_see_the_same_images(
    arguments: Callable[..., list[str]], teacher_run: Path, tmp_path: Path
) -> None:
    """At a balance of 0 a teacher says nothing, and the paired baseline must come out exactly."""
    assert classify.main(arguments(tmp_path / "none", method="none")) == 0
    taught = arguments(tmp_path / "kd", "--balance", "0", teachers=(str(teacher_run),))
    assert classify.main(taught) == 0
    one, other = (torch.load(tmp_path / n / "student" / "weights.pt", weights_only=True) for n in ("none", "kd"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.usefixtures("quick_export")
def test_early_stopping_keeps_the_best_held_out_epoch(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    settings = ("--set", "lr=0.02", "holdout=0.25", "patience=2", "warmup=0")
    assert classify.main(arguments(tmp_path / "run", "--epochs", "40", *settings, method="none")) == 0
    held_out = [row["held_out"] for row in Stage(tmp_path / "run" / "training" / "student").history()]
    best = held_out.index(max(held_out))
    assert len(held_out) == best + 3
    assert len(held_out) < 40


@pytest.mark.usefixtures("quick_export")
def test_a_hint_stage_is_neither_stopped_nor_chosen_by_what_it_cannot_classify_yet(
    arguments: Callable[..., list[str]], teacher_run: Path, tmp_path: Path
) -> None:
    settings = ("--set", "lr=0.01", "holdout=0.25", "patience=1", "hint_epochs=4")
    flags = arguments(tmp_path / "run", *settings, method="fitnets", teachers=(str(teacher_run),))
    assert classify.main(flags) == 0
    hint, student = (Stage(tmp_path / "run" / "training" / name).history() for name in ("hint", "student"))
    assert len(hint) == 4
    assert "held_out" not in hint[0]
    assert "held_out" in student[0]


@pytest.mark.usefixtures("quick_export")
def test_feature_extraction_moves_the_last_layer_alone_until_fine_tuning(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    moved = {}
    for name, epochs in (("frozen", "2"), ("tuned", "4")):
        out = tmp_path / name
        settings = ("--set", "freeze_epochs=2", "teach_epochs=1+2")
        assert classify.main(arguments(out, "--epochs", epochs, *settings, method="none")) == 0
        stage = Stage(out / "training" / "student")
        first = torch.load(stage.kept(1), weights_only=True)
        last = torch.load(stage.weights_path, weights_only=True)
        moved[name] = {key for key in last if not torch.equal(first[key], last[key])}
    assert moved["frozen"] == {"fc.weight", "fc.bias"}
    assert moved["tuned"] == set(first)


def test_two_processes_step_as_one_with_the_whole_batch(colours: Path, teacher_run: Path, tmp_path: Path) -> None:
    """Gradients are averaged over two gloo processes with half of each batch: the same steps up to rounding."""
    flags = ["-m", "distill.classify", "--student", STUDENT, "--data", str(colours), "--method", "kd"]
    flags += ["--teacher", str(teacher_run)]
    flags += ["--epochs", "2", "--batch", "12", "--device", "cpu", "--set", "optimizer=sgd", "lr=0.01"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    assert classify.main([*flags[2:], "--out", str(tmp_path / "one")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    done = subprocess.run(
        [*launch, *flags, "--out", str(tmp_path / "two")], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("top-1") == 1  # one of them reports
    one, two = (torch.load(tmp_path / n / "student" / "weights.pt", weights_only=True) for n in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-6)


def test_a_real_cifar_sample_is_read_as_it_lies(cifar10_mini: Path) -> None:
    data = open_image_folder(cifar10_mini)
    assert (len(data.train.files), len(data.val.files), len(data.names)) == (5000, 1000, 10)
    assert data.val.name == "test"


def test_processes_share_every_batch_without_an_image_twice(colours: Path) -> None:
    pixels = Pixels(open_image_folder(colours).train, Frame(16, 16))
    precision = Precision(torch.device("cpu"))
    images = TrainingImages(pixels, Augmentation("none", 0, len(pixels)), 0, 0, precision)
    whole = [batch.indices.tolist() for batch in images.epoch(1, 10)]
    shares = [[b.indices.tolist() for b in images.epoch(1, 10, rank=rank, world=2)] for rank in (0, 1)]
    for one, left, right in zip(whole, *shares, strict=True):
        assert sorted(one) == sorted(left + right)
        assert len(left) == len(right)
