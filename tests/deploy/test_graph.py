"""The one graph: its raw tensors against ultralytics' own head, and every checkpoint that must be refused."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ultralytics", reason="deploying needs the [train] extra")

import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel, OBBModel, PoseModel

from deploy.errors import ExportError, StudentError
from deploy.graph import check_imgsz, export_onnx, load_graph

OUTPUT_NAMES = ["box_p3", "box_p4", "box_p5", "class_p3", "class_p4", "class_p5"]


def _image(side: int = 96) -> torch.Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(3))


def test_the_six_raw_tensors_are_those_that_ultralytics_decodes(deployed_student) -> None:
    graph = load_graph(deployed_student.checkpoint)
    model = torch.load(deployed_student.checkpoint, weights_only=False)["model"].float().eval()  # not fused, not cut
    with torch.no_grad():
        raw, whole = graph.network(_image()), model(_image())[1]
    boxes, classes = (torch.cat([one.flatten(2) for one in raw[part]], 2) for part in (slice(0, 3), slice(3, 6)))
    torch.testing.assert_close(boxes, whole["boxes"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(classes, whole["scores"], rtol=1e-4, atol=1e-4)


def test_outputs_say_what_each_tensor_is(deployed_student) -> None:
    graph = load_graph(deployed_student.checkpoint)
    assert [output.name for output in graph.outputs] == OUTPUT_NAMES
    assert [output.stride for output in graph.outputs] == [8, 16, 32] * 2
    assert [output.channels for output in graph.outputs] == [64, 64, 64, 3, 3, 3]
    assert [tuple(one.shape) for one in graph.network(_image(64))] == [
        (1, output.channels, 64 // output.stride, 64 // output.stride) for output in graph.outputs
    ]
    assert (graph.class_names, graph.reg_max, graph.trained_imgsz) == (("red", "green", "blue"), 16, 96)


def test_the_averaged_weights_of_an_unfinished_training_are_taken(deployed_student, tmp_path: Path) -> None:
    fields = torch.load(deployed_student.checkpoint, weights_only=False)
    averaged = fields["model"]
    other = DetectionModel("yolov8n.yaml", nc=3, verbose=False)
    torch.save({**fields, "model": other, "ema": averaged}, tmp_path / "last.pt")
    met, expected = (load_graph(path).network(_image()) for path in (tmp_path / "last.pt", deployed_student.checkpoint))
    for one, reference in zip(met, expected, strict=True):
        assert torch.equal(one, reference)


def test_the_onnx_graph_has_one_float_input_and_the_named_outputs(deployed_student) -> None:
    model = export_onnx(load_graph(deployed_student.checkpoint), 64)
    assert [one.name for one in model.graph.input] == ["images"]
    assert [one.name for one in model.graph.output] == OUTPUT_NAMES
    assert [one.version for one in model.opset_import if one.domain == ""] == [17]
    assert not {"Shape", "Gather", "BatchNormalization", "Softmax"} & {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(("imgsz", "advice"), [(100, "--imgsz 96"), (31, "--imgsz 32"), (-64, "--imgsz 32"), (0, "32")])
def test_a_size_that_is_no_multiple_of_32_is_refused_with_the_nearest(imgsz: int, advice: str) -> None:
    with pytest.raises(ExportError, match=rf"image size {imgsz} .*{advice}"):
        check_imgsz(imgsz)
    assert check_imgsz(96) == 96


def _refused(path: Path, reason: str) -> None:
    with pytest.raises(StudentError, match=reason) as caught:
        load_graph(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_is_refused_and_not_looked_for_elsewhere(tmp_path: Path) -> None:
    _refused(tmp_path / "yolov8n.pt", "no checkpoint")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    _refused(tmp_path / "model.onnx", r"ends in '\.onnx', expected a \.pt")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(deployed_student, tmp_path: Path, share: float) -> None:
    content = deployed_student.checkpoint.read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(share * len(content))])
    _refused(tmp_path / "cut.pt", "cannot be read|is damaged")


def _zip(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"not a checkpoint at all",
        b"\x80\x02}q\x00.",
        os.urandom(5000),
        _zip(readme=b"hello"),
        b"\x89PNG\r\n\x1a\n" * 20,
    ],
    ids=["text", "bare pickle", "noise", "zip", "image"],
)
def test_something_else_named_pt_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.pt").write_bytes(content)
    _refused(tmp_path / "other.pt", "cannot be read|is damaged|an ultralytics model is expected")


@pytest.mark.parametrize(
    "saved",
    [
        {"weight": torch.zeros(3)},
        {"model": {"weight": torch.zeros(3)}},
        {"model": nn.Sequential(nn.Conv2d(3, 3, 1))},
        {"model": None, "ema": None},
        [1, 2, 3],
        torch.zeros(4),
    ],
    ids=["state dict", "nested state dict", "other module", "emptied", "list", "tensor"],
)
def test_a_torch_file_without_an_ultralytics_model_is_refused(tmp_path: Path, saved: Any) -> None:
    torch.save(saved, tmp_path / "weights.pt")
    _refused(tmp_path / "weights.pt", "an ultralytics model is expected|cannot be read")


class _Intruder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_that_would_run_code_is_refused_without_running_it(tmp_path: Path) -> None:
    torch.save({"model": _Intruder(tmp_path / "ran")}, tmp_path / "bad.pt")
    _refused(tmp_path / "bad.pt", "cannot be read")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: PoseModel("yolov8n-pose.yaml", nc=3, verbose=False), "has a Pose head, expected Detect, Segment or"),
        (lambda: OBBModel("yolov8n-obb.yaml", nc=3, verbose=False), "has a OBB head"),
        (lambda: DetectionModel("yolov10n.yaml", nc=3, verbose=False), "v10Detect head|end-to-end"),
        (lambda: DetectionModel("yolo26n.yaml", nc=3, verbose=False), "end-to-end head"),
        (lambda: DetectionModel("yolov8n-p2.yaml", nc=3, verbose=False), r"strides \(4, 8, 16, 32\)"),
        (lambda: DetectionModel("yolov8n.yaml", ch=1, nc=3, verbose=False), "images of 1 channels, expected 3"),
    ],
    ids=["pose", "obb", "v10", "yolo26", "p2", "one channel"],
)
def test_another_network_is_refused_with_what_it_is(tmp_path: Path, build: Any, reason: str) -> None:
    torch.save({"model": build(), "ema": None, "train_args": {}}, tmp_path / "other.pt")
    _refused(tmp_path / "other.pt", reason)


def test_weights_that_are_not_finite_are_refused(deployed_student, tmp_path: Path) -> None:
    fields = torch.load(deployed_student.checkpoint, weights_only=False)
    fields["model"].model[4].cv1.conv.weight[0, 0, 0, 0] = np.nan
    torch.save(fields, tmp_path / "diverged.pt")
    _refused(tmp_path / "diverged.pt", r"not finite \(model\.4\.cv1\.conv\.weight\)")


def test_class_names_that_do_not_fit_the_head_are_refused(deployed_student, tmp_path: Path) -> None:
    fields = torch.load(deployed_student.checkpoint, weights_only=False)
    fields["model"].names = {0: "red"}
    torch.save(fields, tmp_path / "names.pt")
    _refused(tmp_path / "names.pt", "1 class names for 3 classes")
