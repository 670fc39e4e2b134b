"""ncnn's files and how they are quantized: what pnnx and ncnn themselves make of them is the reference."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ncnn", reason="pip install ncnn pnnx")
pytest.importorskip("ultralytics", reason="making bundles needs the [train] extra")

import deploy.ncnn
from deploy.build import build_bundle
from deploy.bundle import Bundle
from deploy.cli import run_command
from deploy.errors import EngineError, ExportError
from deploy.graph import Graph, load_graph
from deploy.ncnn_format import Blob, Layer, read_network, write_network
from deploy.ncnn_int8 import SCALE_TERMS, _quantize_layer, quantize
from deploy.runtime import letterbox, load_engine, read_image
from deploy.student import find_student
from deploy.target import Job
from deploy.verify import TorchEngine

INT8_TAG = 0x000D4B38
MEAN_BOUND = {"fp32": 1e-4, "fp16": 0.05, "int8": 0.6}  # of raw tensors whose values spread over about 1 to 10


def _network(bundle: Path) -> list[Layer]:
    return read_network((bundle / "model.param").read_text(), (bundle / "model.bin").read_bytes())


@pytest.mark.parametrize("precision", MEAN_BOUND)
def test_raw_tensors_are_those_of_torch(precision: str, bundles: Callable[[str, str], Path], deployed_student) -> None:
    bundle = Bundle.open(bundles("ncnn", precision))
    engine = load_engine(bundle, threads=1)
    reference = TorchEngine(load_graph(deployed_student.checkpoint), bundle.manifest.input)
    for image in sorted((deployed_student.data_yaml.parent / "images" / "val").iterdir()):
        pixels = letterbox(read_image(image), 96, 96)[0]
        for met, expected in zip(engine.infer(pixels), reference.infer(pixels), strict=True):
            assert np.abs(met - expected).mean() < MEAN_BOUND[precision]
            if precision == "fp32":
                assert np.abs(met - expected).max() < 1e-3
    engine.close()


@pytest.mark.parametrize("precision", MEAN_BOUND)
def test_reading_and_writing_gives_the_same_bytes(precision: str, bundles: Callable[[str, str], Path]) -> None:
    folder = bundles("ncnn", precision)
    param, weights = write_network(_network(folder))
    assert param == (folder / "model.param").read_text()
    assert weights == (folder / "model.bin").read_bytes()


def test_no_path_and_no_counter_of_the_process_is_in_the_files(bundles: Callable[[str, str], Path]) -> None:
    text = (bundles("ncnn", "int8") / "model.param").read_text()
    names = [line.split()[1] for line in text.splitlines()[2:]]
    assert names == [f"{line.split()[0].lower()}_{index}" for index, line in enumerate(text.splitlines()[2:])]
    assert "/" not in text
    assert "Input input_0 0 1 images 0=96 1=96 2=3\n" in text


def test_every_convolution_but_the_first_and_the_last_six_has_int8_weights_and_scales(
    bundles: Callable[[str, str], Path],
) -> None:
    folder = bundles("ncnn", "int8")
    lines = [line for line in (folder / "model.param").read_text().splitlines() if line.startswith("Convolution")]
    quantized = [line for line in lines if re.search(r" 8=2\b", line)]
    assert (len(lines), len(quantized)) == (63, 56)
    floats = {line.split()[5] for line in lines if line not in quantized}
    assert floats == {"7"} | {f"{meaning}_p{level}" for meaning in ("box", "class") for level in (3, 4, 5)}
    assert (folder / "model.bin").read_bytes().count(struct.pack("<I", INT8_TAG)) >= 56
    recipe = Bundle.open(folder).manifest.quantization
    assert recipe is not None
    assert len(recipe["float_layers"]) == 7
    assert recipe["float_layers"][0] == "model.0.conv"
    assert all(re.fullmatch(r"model\.22\.cv[23]\.\d\.2", name) for name in recipe["float_layers"][1:])


@pytest.mark.parametrize("kind", SCALE_TERMS)
def test_a_quantized_layer_computes_what_its_integers_say(kind: str, tmp_path: Path) -> None:
    """Two like layers one after the other, whose exact result in integers is known, through ncnn itself."""
    import ncnn

    rng = np.random.default_rng(0)
    limit, bias = 1.5, rng.normal(size=4).astype(np.float32)  # below the greatest magnitude: some values are cut off
    weights = rng.normal(size=(4, 1 if kind == "ConvolutionDepthWise" else 4)).astype(np.float32)
    image = rng.normal(size=4 if kind == "InnerProduct" else (4, 8, 8)).astype(np.float32)
    number = str(weights.size)
    params = {0: "4", 1: "1", 2: number} if kind == "InnerProduct" else {0: "4", 1: "1", 5: "1", 6: number}
    if kind == "ConvolutionDepthWise":
        params[7] = "4"
    layers = [Layer("Input", "i", [], ["0"], {})]
    for name in ("1", "2"):  # the second is only found where the first has just its own bytes
        blobs = [Blob(weights.ravel(), tagged=True), Blob(bias)]
        layers.append(Layer(kind, f"layer{name}", [layers[-1].outputs[0]], [name], dict(params), blobs))
        _quantize_layer(layers[-1], limit)
    param, content = write_network(layers)
    (tmp_path / "m.param").write_text(param)
    (tmp_path / "m.bin").write_bytes(content)
    net = ncnn.Net()
    assert net.load_param(str(tmp_path / "m.param")) == 0
    assert net.load_model(str(tmp_path / "m.bin")) == 0
    extractor = net.create_extractor()
    extractor.input("0", ncnn.Mat(image))
    _, met = extractor.extract("1")
    assert extractor.extract("2")[0] == 0

    scale = np.abs(weights).max(axis=1, keepdims=True) / 127
    rounded = np.rint(weights / scale) * scale
    matrix = np.diag(rounded[:, 0]) if kind == "ConvolutionDepthWise" else rounded
    read = np.clip(np.rint(image / (limit / 127)), -127, 127) * (limit / 127)
    expected = (matrix @ read.reshape(4, -1) + bias[:, None]).reshape(image.shape)
    assert np.abs(np.asarray(met) - expected).max() < 1e-4
    assert np.abs(image).max() > limit or kind == "InnerProduct"


class _Net:
    """A job's graph of a few layers that no detector has."""

    @staticmethod
    def graph() -> Graph:
        import torch
        from torch import nn

        from deploy.bundle import OutputSpec

        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.PReLU(8),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False),
            nn.Conv2d(8, 8, 3, 1, 1, groups=2),
            nn.ConvTranspose2d(8, 6, 2, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        ).eval()
        return Graph(
            network=network,
            outputs=(OutputSpec("logits", "logits", 0, 5, "NC"),),
            class_names=tuple("abcde"),
            reg_max=0,
            parameters=1,
            trained_imgsz=32,
            task="classify",
            fit="stretch",
        )


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Job, list[Layer]]:
    job = Job(_Net.graph(), "fp32", 32, None, tmp_path)
    return job, deploy.ncnn._convert(job)


def test_every_kind_of_weights_is_read_to_the_last_byte(layers: tuple[Job, list[Layer]]) -> None:
    kinds = {layer.kind for layer in layers[1] if layer.weights}
    assert {"Convolution", "ConvolutionDepthWise", "Deconvolution", "PReLU", "InnerProduct"} <= kinds
    param, weights = write_network(layers[1])
    assert write_network(read_network(param, weights)) == (param, weights)
    with pytest.raises(ExportError, match="end before the last layer"):
        read_network(param, weights[:-4])
    with pytest.raises(ExportError, match="4 bytes of weights belong to none"):
        read_network(param, weights + b"1234")


def test_depthwise_and_linear_layers_are_quantized_and_transposed_convolutions_said_to_be_float(
    layers: tuple[Job, list[Layer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "deploy.ncnn_int8._limits",
        lambda _layers, chosen, _job, _recipe: dict.fromkeys((layer.name for layer in chosen), 2.0),
    )
    monkeypatch.setattr("deploy.layers.student_layers", lambda _graph: ())
    monkeypatch.setattr("deploy.layers.float_layer_names", lambda _graph: ("4",))
    job, network = layers
    recipe = quantize(network, job)
    assert recipe.float_layers == ("4",)
    for layer in network:
        assert ("8" in map(str, layer.params)) == (layer.kind in SCALE_TERMS)
    (depthwise, grouped) = (layer for layer in network if layer.kind == "ConvolutionDepthWise")
    assert [len(blob.values) for blob in depthwise.weights] == [72, 8, 1]
    assert [len(blob.values) for blob in grouped.weights] == [8 * 4 * 9, 8, 2, 1]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_segmenter_has_all_its_tensors(precision: str, deployed_student, tmp_path: Path) -> None:
    import torch
    from ultralytics.nn.tasks import SegmentationModel

    torch.manual_seed(0)
    model = SegmentationModel("yolov8n-seg.yaml", nc=3, verbose=False)
    torch.save({"model": model, "ema": None, "train_args": {"imgsz": 64, "task": "segment"}}, tmp_path / "seg.pt")
    images = deployed_student.data_yaml.parent / "images" / "train"
    student, out = find_student(tmp_path / "seg.pt"), tmp_path / "bundle"
    bundle = build_bundle(
        deploy.ncnn.TARGET, student, out, precision=precision, calibration=images, calibration_images=2, verify=False
    )
    pixels = letterbox(read_image(images / "0.png"), 64, 64)[0]
    reference = TorchEngine(load_graph(student.checkpoint), bundle.manifest.input).infer(pixels)
    met = load_engine(bundle, threads=1).infer(pixels)
    assert [one.meaning for one in bundle.manifest.outputs].count("mask") == 3
    for one, expected in zip(met, reference, strict=True):
        assert np.abs(one - expected).max() < (1e-3 if precision == "fp32" else 0.5)
    if precision == "int8":
        assert bundle.manifest.quantization is not None
        assert "model.22.proto.upsample" in bundle.manifest.quantization["float_layers"]


# Refusals -----------------------------------------------------------------------------------------------------------


def test_an_operation_that_ncnn_lacks_is_named(tmp_path: Path) -> None:
    from dataclasses import replace

    import torch

    class Odd(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            return (torch.cummax(images.flatten(1), 1)[0][:, :5],)

    job = Job(replace(_Net.graph(), network=Odd()), "fp32", 32, None, tmp_path)
    with pytest.raises(ExportError, match="deploy this student to onnx, openvino or tflite") as caught:
        deploy.ncnn._convert(job)
    assert "\n" not in str(caught.value)


def test_a_failing_pnnx_is_shown_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deployed_student, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "pnnx"
    program.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("pnnx.EXEC_PATH", str(program))
    argv = ["--student", str(deployed_student.run), "--out", str(tmp_path / "bundle")]
    assert run_command(lambda: deploy.ncnn.main(argv)) == 1
    assert "pnnx cannot convert the student (exit code 3): out of luck" in capfd.readouterr().err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["model.param", "model.bin"])
def test_a_damaged_file_is_refused_in_one_line(name: str, bundles: Callable[[str, str], Path], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "bundle"
    shutil.copytree(bundles("ncnn", "fp32"), folder)
    whole = Bundle.open(folder)
    (folder / name).write_bytes((folder / name).read_bytes()[: 2000 if name == "model.param" else -4])
    with pytest.raises(EngineError, match=f"refuses .*{name}.*make the bundle again") as caught:
        load_engine(whole, threads=1)
    assert "\n" not in str(caught.value)


def test_the_precision_of_float_layers_is_always_said_and_what_was_executed_told(
    bundles: Callable[[str, str], Path],
) -> None:
    asked: dict[str, Any] = {"fp32": "f32", "fp16": "f16", "int8": "f32"}
    for precision, expected in asked.items():
        engine = load_engine(Bundle.open(bundles("ncnn", precision)), threads=1)
        facts = engine.facts()
        assert facts["inference_precision_asked"] == expected
        assert facts["inference_precision_executed"] in ("f32", expected)
        settings = engine._net.opt  # type: ignore[attr-defined]
        assert settings.use_fp16_arithmetic == settings.use_fp16_storage == (expected == "f16")
        engine.close()
