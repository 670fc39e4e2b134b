"""A tiny real bundle and a tiny data set, made in milliseconds without torch, and a bare Python to run them with."""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deploy.bundle import MANIFEST_NAME, Bundle, InputSpec, Manifest, OutputSpec, sha256_file
from deploy.runtime import Detector

SIDE, REG_MAX, CLASSES = 64, 4, ("square", "disc")
COLOUR_SIDE, COLOURS = 12, ("blue", "green", "red")

MakeBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file: uint8 NHWC pixels to six raw head tensors, each one random convolution of its level's stride."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["nchw"], perm=[0, 3, 1, 2]),
    ]
    weights = [numpy_helper.from_array(np.float32(1 / 255).reshape(()), "scale")]
    outputs = []
    for meaning, channels in (("box", 4 * REG_MAX), ("class", len(CLASSES))):
        for stride in (8, 16, 32):
            name = f"{meaning}_{stride}"
            spread = 4.0 / (stride * np.sqrt(3))
            kernel = random.normal(0, spread, (channels, 3, stride, stride)).astype(np.float32)
            bias = np.full(channels, -2.0 if meaning == "class" else 0.0, np.float32)
            weights += [numpy_helper.from_array(kernel, f"{name}_w"), numpy_helper.from_array(bias, f"{name}_b")]
            nodes.append(
                helper.make_node(
                    "Conv",
                    ["nchw", f"{name}_w", f"{name}_b"],
                    [name],
                    kernel_shape=[stride, stride],
                    strides=[stride, stride],
                )
            )
            cells = SIDE // stride
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, cells, cells]))
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, SIDE, SIDE, 3])
    graph = helper.make_graph(nodes, "tiny", [images], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = tmp_path_factory.mktemp("tiny") / "model.onnx"
    onnx.save(model, file)
    return file


@pytest.fixture(scope="session")
def make_bundle(tiny_model: Path) -> MakeBundle:
    """Writes a bundle folder; `fields` replace those of its manifest."""

    def make(folder: Path, **fields: object) -> Path:
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(tiny_model.read_bytes())
        given: dict[str, object] = {
            "engine": "onnx",
            "precision": "fp32",
            "files": {"model.onnx": sha256_file(folder / "model.onnx")},
            "model_file": "model.onnx",
            "input": InputSpec("images", SIDE, SIDE, "NHWC", "uint8"),
            "outputs": tuple(
                OutputSpec(f"{meaning}_{stride}", meaning, stride, channels, "NCHW")
                for meaning, channels in (("box", 4 * REG_MAX), ("class", len(CLASSES)))
                for stride in (8, 16, 32)
            ),
            "reg_max": REG_MAX,
            "class_names": CLASSES,
            "student": {"name": "tiny", "sha256": "0" * 64},
            "tools": {"onnx": importlib.metadata.version("onnx")},
            **fields,
        }
        (folder / MANIFEST_NAME).write_text(Manifest(**given).to_json(), encoding="utf-8")  # type: ignore[arg-type]
        return folder

    return make


@pytest.fixture
def tiny_bundle(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    """One bundle."""
    folder = make_bundle(tmp_path / "bundles" / "tiny-onnx-fp32")
    Bundle.open(folder)
    return folder


@pytest.fixture
def tiny_data(tmp_path: Path, tiny_bundle: Path) -> Path:
    """A data.yaml with a validation set of six images of different shapes and awkward names.

    None needs resizing, so that detections do not depend on who resizes; truth is what the tiny network is surest of.
    """
    root = tmp_path / "data"
    random = np.random.default_rng(1)
    for folder in ("images", "labels"):
        (root / folder / "val").mkdir(parents=True)
    detector = Detector(tiny_bundle, conf=0.05, max_det=3, threads=1)
    names = ["plain.png", "two words.png", "it's $(x).png", "größe 日本.png", "-dash.png", "new\nline.png"]
    for index, name in enumerate(names):
        width, height = (SIDE, SIDE - 6 * index) if index % 2 else (SIDE - 6 * index, SIDE)
        pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / "val" / name)
        lines = []
        found = detector(pixels)
        for (left, top, right, bottom), class_id in zip(found.boxes_xyxy, found.class_ids, strict=True):
            centre = f"{(left + right) / 2 / width} {(top + bottom) / 2 / height}"
            lines.append(f"{class_id} {centre} {(right - left) / width} {(bottom - top) / height}\n")
        assert lines
        (root / "labels" / "val" / Path(name).with_suffix(".txt")).write_text("".join(lines))
    file = root / "tiny.yaml"
    file.write_text(f"path: {root}\nval: images/val\nnames: [square, disc]\n")
    return file


@pytest.fixture
def colour_bundle(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    """A real network that names the channel with the greatest mean; blue and red are told apart, green is dark."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["means", "weights"], ["logits"]),
    ]
    weights = 0.05 * np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], np.float32)
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, COLOUR_SIDE, COLOUR_SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = make_bundle(tmp_path / "bundles" / "colours-onnx-fp32")
    onnx.save(model, folder / "model.onnx")
    manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"), "made")
    changed = replace(
        manifest,
        files={"model.onnx": sha256_file(folder / "model.onnx")},
        input=InputSpec("pixels", COLOUR_SIDE, COLOUR_SIDE, "NHWC", "uint8", fit="crop", resize=COLOUR_SIDE),
        outputs=(OutputSpec("logits", "logits", 0, 3, "NC"),),
        reg_max=0,
        class_names=COLOURS,
        student={"name": "colours", "sha256": "1" * 64},
        task="classify",
        data_root=str(tmp_path / "data"),
    )
    (folder / MANIFEST_NAME).write_text(changed.to_json(), encoding="utf-8")
    return folder


@pytest.fixture
def colour_data(tmp_path: Path) -> Path:
    """Five images of each class in `test`; two of green are so red that they are named wrongly."""
    root, rng = tmp_path / "data", np.random.default_rng(3)
    for class_id, name in enumerate(COLOURS):
        (root / "test" / name).mkdir(parents=True)
        for index in range(5):
            wrong = name == "green" and index < 2
            Image.fromarray(_coloured(rng, 2 if wrong else class_id, 30 + 40 * index)).save(
                root / "test" / name / f"{name} {index}.png"
            )
    return root


def _coloured(rng: np.random.Generator, class_id: int, excess: int) -> NDArray[np.uint8]:
    pixels = rng.integers(0, 60, (COLOUR_SIDE + 4, COLOUR_SIDE, 3))
    pixels[..., 2 - class_id] += excess
    return pixels.astype(np.uint8)


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Makes an interpreter that can import the given distributions and the standard library, and nothing else."""

    def make(*distributions: str) -> str:
        folder = tmp_path_factory.mktemp("bare") / "a 'bare' $(python)"
        packages = folder / "packages"
        packages.mkdir(parents=True)
        for distribution in distributions:
            for file in importlib.metadata.files(distribution) or ():
                top = file.parts[0]
                if top != ".." and not (packages / top).exists() and top != "__pycache__":
                    site = Path(str(file.locate())).parents[len(file.parts) - 1]
                    (packages / top).symlink_to(site / top)
        launcher = folder / "python"
        launcher.write_text(
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(packages))} exec {shlex.quote(sys.executable)} -S "$@"\n'
        )
        launcher.chmod(0o755)
        return str(launcher)

    return make


@pytest.fixture(scope="session")
def device_python(bare_python: Callable[..., str]) -> str:
    """An interpreter as on a device."""
    return bare_python("numpy", "pillow", "onnxruntime", "flatbuffers", "protobuf")
