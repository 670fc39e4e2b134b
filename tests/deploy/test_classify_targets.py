"""Classifiers through all three targets: a tiny network whose last layer is solved for, so that it does classify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from deploy import mnn as mnn_target
from deploy import ncnn as ncnn_target
from deploy import onnx as onnx_target
from deploy import openvino as openvino_target
from deploy import tflite as tflite_target
from deploy.build import build_bundle
from deploy.bundle import Bundle, sha256_file
from deploy.cli import run_command
from deploy.errors import ExportError, StudentError
from deploy.graph import load_graph
from deploy.image_folder import load_image_folder
from deploy.runtime import Classifier, read_image
from deploy.runtime.fit import fit_image
from deploy.student import find_student

TARGETS = {
    "onnx": onnx_target,
    "openvino": openvino_target,
    "tflite": tflite_target,
    "ncnn": ncnn_target,
    "mnn": mnn_target,
}
CLASSES = ("blue", "dots", "green", "red")
SIDE = 20  # no multiple of 32: a classifier need not be one


class _Net(nn.Module):
    """Normalisation, two convolutions (one depthwise), a padded pooling, Flatten and Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1), persistent=False)
        self.first = nn.Conv2d(3, 12, 3, 2, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, 1, 1, groups=12)
        self.last = nn.Linear(12 * 25, len(CLASSES))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        x = nn.functional.leaky_relu(self.first((images - self.mean) / self.std), 0.2)
        padded = nn.functional.pad(self.depthwise(x), (0, 1, 0, 1), value=float("-inf"))
        return nn.functional.max_pool2d(padded, 3, 2).flatten(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.features(images))


def _pixels(name: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    height, width = rng.integers(SIDE, 2 * SIDE, 2)
    image = rng.normal(110, 45, (height, width, 3))
    if name == "dots":
        image[::4, ::4] += 120
    else:
        image[..., ("red", "green", "blue").index(name)] += 40
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("classified") / "colours", np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 12)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(_pixels(name, rng)).save(root / split / name / f"{index:02d}.png")
    return root


@pytest.fixture(scope="module")
def student_folder(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What python -m distill.classify leaves: a student folder in the form that deploy reads."""
    folder = tmp_path_factory.mktemp("run") / "colours" / "student"
    folder.mkdir(parents=True)
    fields: dict[str, Any] = {
        "schema": 1,
        "task": "classify",
        "student": {"file": "student.pt2"},
        "teacher": {"name": "big", "sha256": "1" * 64, "parameters": 9},
        "data": {"root": str(data_root), "train": "train", "val": "test"},
        "imgsz": SIDE,
        "input": {"height": SIDE, "width": SIDE, "fit": "crop", "resize": SIDE + 2},
        "class_names": list(CLASSES),
        "losses": {"kd": 1.0},
    }
    net = _solved(data_root)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (torch.rand(2, 3, SIDE, SIDE),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "student.pt2")
    fields["student"]["sha256"] = sha256_file(folder / "student.pt2")
    (folder / "student.json").write_text(json.dumps(fields))
    return folder


def _solved(data_root: Path) -> nn.Module:
    """A network whose last layer fits the training images by least squares."""
    from deploy.bundle import InputSpec

    torch.manual_seed(0)
    net = _Net().eval()
    dataset = load_image_folder(data_root, "train")
    spec = InputSpec("pixels", SIDE, SIDE, fit="crop", resize=SIDE + 2)
    pixels = np.concatenate([fit_image(read_image(path), spec) for path in dataset.paths])
    with torch.no_grad():
        features = net.features(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
        wanted = 4.0 * nn.functional.one_hot(torch.from_numpy(dataset.class_ids), len(CLASSES)).float()
        gram = features @ features.T + 3.0 * torch.eye(len(features))
        net.last.weight.copy_((features.T @ torch.linalg.solve(gram, wanted)).T)
        net.last.bias.zero_()
    return net


@pytest.fixture(scope="module")
def bundles(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Bundle]:
    folder, student = tmp_path_factory.mktemp("bundles"), find_student(student_folder)
    kinds = [(name, precision) for name in TARGETS for precision in ("fp32", "int8")] + [("onnx", "fp16")]
    return {
        (name, precision): build_bundle(
            TARGETS[name].TARGET, student, folder / f"{name}-{precision}", precision=precision
        )
        for name, precision in kinds
    }


def test_a_manifest_of_a_classifier_is_complete(bundles: dict[tuple[str, str], Bundle], data_root: Path) -> None:
    for (engine, precision), bundle in bundles.items():
        manifest = bundle.manifest
        assert (manifest.engine, manifest.precision, manifest.task) == (engine, precision, "classify")
        assert manifest.class_names == CLASSES
        assert (manifest.input.height, manifest.input.width) == (SIDE, SIDE)
        assert (manifest.input.fit, manifest.input.resize) == ("crop", SIDE + 2)
        assert [(one.meaning, one.layout, one.channels) for one in manifest.outputs] == [("logits", "NC", 4)]
        assert (manifest.data_root, manifest.data_yaml) == (str(data_root), None)
        assert manifest.student["name"] == "colours"
        assert manifest.student["parameters"] == sum(parameter.numel() for parameter in _Net().parameters())
        assert manifest.student["teacher"] == {"file": None, "name": "big", "sha256": "1" * 64}


def test_a_bundle_classifies_as_its_student_does(bundles: dict[tuple[str, str], Bundle]) -> None:
    for (_, precision), bundle in bundles.items():
        verified = bundle.manifest.verified
        assert verified is not None
        assert (verified["images"], verified["dataset"]) == (48, "colours/test")
        assert verified["student_top1"] > 0.85, "a student at chance shows nothing"
        assert verified["bundle_top5"] == 1.0
        assert verified["drop_points"] == pytest.approx(100 * (verified["student_top1"] - verified["bundle_top1"]))
        assert abs(verified["drop_points"]) <= (3.0 if precision == "int8" else 0.0)
        limit = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.12}[precision]
        assert verified["drift"]["logits"]["mean_abs"] < limit


def test_logits_are_those_of_the_exported_program(
    bundles: dict[tuple[str, str], Bundle], student_folder: Path, data_root: Path
) -> None:
    program = torch.export.load(student_folder / "student.pt2").module()
    path = load_image_folder(data_root).paths[0]
    for name in TARGETS:
        classifier = Classifier(bundles[name, "fp32"], threads=1)
        pixels = torch.from_numpy(fit_image(read_image(path), classifier.manifest.input))
        with torch.inference_mode():
            expected = program(pixels.permute(0, 3, 1, 2).float() / 255)[0]
        found = classifier(path)
        np.testing.assert_allclose(found.logits, expected.numpy(), atol=2e-5)
        assert found.class_ids.tolist() == expected.argsort(descending=True).tolist()
        classifier.close()


def test_every_layer_with_weights_runs_on_int8(bundles: dict[tuple[str, str], Bundle]) -> None:
    import onnx

    graph = onnx.load(bundles["onnx", "int8"].model_path).graph
    quantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(layers) == 3
    for node in layers:
        assert set(node.input[:2]) <= quantized, node.name
    text = bundles["openvino", "int8"].model_path.read_text()
    assert text.count('element_type="i8"') >= 2, "the weights of the first convolution and of the last layer"
    assert bundles["tflite", "int8"].manifest.input.dtype == "int8"
    assert bundles["tflite", "int8"].size_bytes < bundles["tflite", "fp32"].size_bytes


def test_a_bare_exported_program_is_refused_without_its_record(student_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "student.pt2").write_bytes((student_folder / "student.pt2").read_bytes())
    with pytest.raises(StudentError, match=r"student\.pt2 needs the student\.json beside it"):
        find_student(tmp_path / "student.pt2")
    assert find_student(student_folder / "student.pt2").record["task"] == "classify"
    with pytest.raises(StudentError, match=r"without the student\.json of a classifier"):
        load_graph(tmp_path / "student.pt2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["a", "b"]}, r"logits of shape \(1, 4\), its record names 2 classes"),
        ({"class_names": []}, "lacks input or class_names"),
        ({"input": None}, "lacks input or class_names"),
        ({"input": {"height": SIDE, "width": 30, "fit": "stretch"}}, "images of 20 x 30 px, expected a square"),
        ({"input": {"height": SIDE, "width": SIDE, "fit": "letterbox"}}, "fit 'letterbox', expected one of crop"),
        ({"input": {"height": SIDE, "width": SIDE, "fit": "crop"}}, "resize None, expected 20 px or more"),
        ({"input": {"height": 24, "width": 24, "fit": "stretch"}}, "cannot be run on an image of 24 px"),
    ],
)
def test_a_record_that_does_not_fit_its_program_is_refused(
    student_folder: Path, changes: dict[str, Any], message: str
) -> None:
    student = find_student(student_folder)
    with pytest.raises(StudentError, match=message) as caught:
        load_graph(student.checkpoint, {**student.record, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"noise" * 100])
def test_a_damaged_program_is_refused_in_one_line(student_folder: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "student.pt2").write_bytes(content)
    with pytest.raises(StudentError) as caught:
        load_graph(tmp_path / "student.pt2", find_student(student_folder).record)
    assert str(tmp_path / "student.pt2") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_size_than_the_programs_is_refused(student_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="image size 32 is not the 20 px that the student was made for"):
        build_bundle(onnx_target.TARGET, find_student(student_folder), tmp_path / "b", imgsz=32)
    assert not list(tmp_path.iterdir())


def test_a_student_whose_data_is_gone_is_verified_on_what_is_given_and_says_so(
    student_folder: Path, data_root: Path, tmp_path: Path
) -> None:
    record = json.loads((student_folder / "student.json").read_text())
    record["data"] = {"root": str(tmp_path / "gone"), "train": "train", "val": "val"}  # what is given has a test split
    folder = tmp_path / "moved"
    folder.mkdir()
    (folder / "student.pt2").write_bytes((student_folder / "student.pt2").read_bytes())
    (folder / "student.json").write_text(json.dumps(record))
    manifest = build_bundle(onnx_target.TARGET, find_student(folder), tmp_path / "b", calibration=data_root).manifest
    assert manifest.data_root == str(data_root)
    assert manifest.verified is not None
    assert manifest.verified["dataset"] == f"{data_root.name}/test"


def test_a_loss_of_top1_above_the_allowed_is_refused_with_both_figures(
    student_folder: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from deploy.runtime import engine as engines

    class Blind:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def infer(self, pixels: NDArray[np.uint8]) -> Any:
            return tuple(-output for output in self._inner.infer(pixels))

        def close(self) -> None:
            self._inner.close()

    real = engines.load_engine
    monkeypatch.setattr("deploy.verify.load_engine", lambda *arguments: Blind(real(*arguments)))
    argv = ["--student", str(student_folder), "--out", str(tmp_path / "b")]
    assert run_command(lambda: onnx_target.main(argv)) == 1
    assert "points of top-1 on colours/test" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_ultralytics_classifier_gives_the_probabilities_of_ultralytics(data_root: Path, tmp_path: Path) -> None:
    from ultralytics import YOLO
    from ultralytics.nn.tasks import ClassificationModel

    torch.manual_seed(0)
    model = ClassificationModel("yolov8n-cls.yaml", nc=4, verbose=False)
    model.names = dict(enumerate(CLASSES))
    with torch.no_grad():  # fresh BatchNorms keep nothing of the image
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.8, 2.5)
        model.model[-1].linear.weight.mul_(30)
    torch.save({"model": model, "ema": None, "train_args": {"imgsz": 64, "task": "classify"}}, tmp_path / "cls.pt")
    student = find_student(tmp_path / "cls.pt")
    bundle = build_bundle(onnx_target.TARGET, student, tmp_path / "b", verify=False)
    assert (bundle.manifest.input.height, bundle.manifest.input.fit, bundle.manifest.input.resize) == (64, "crop", 64)
    paths = load_image_folder(data_root).paths[::12]
    classifier = Classifier(bundle, threads=1)
    for path, expected in zip(paths, YOLO(tmp_path / "cls.pt")(list(paths), imgsz=64, verbose=False), strict=True):
        found = classifier(path)
        met = np.zeros(4, np.float32)
        met[found.class_ids] = found.scores
        np.testing.assert_allclose(met, expected.probs.data.numpy(), atol=1e-4)
    quantized = build_bundle(
        onnx_target.TARGET, student, tmp_path / "q", precision="int8", calibration=data_root, max_drop_points=100
    )
    assert quantized.manifest.verified is not None
    assert quantized.manifest.verified["dataset"] == "colours/test"
    assert quantized.manifest.data_root == str(data_root)
