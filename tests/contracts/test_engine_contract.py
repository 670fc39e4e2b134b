"""What `deploy.runtime.Engine` promises, asked of every engine and precision, on bundles of a tiny real student."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ultralytics", reason="making bundles needs the [train] extra")

from deploy.bundle import ENGINES, Bundle
from deploy.errors import EngineError
from deploy.graph import load_graph
from deploy.runtime import Engine, letterbox, load_engine, read_image
from deploy.runtime.engine import RawEngine
from deploy.runtime.options import OPTIONS
from deploy.verify import TorchEngine

# Largest mean distance of a raw tensor from the float student's, as a fraction of that tensor's own spread.
CLOSE_ENOUGH = {"fp32": 1e-5, "fp16": 0.03, "int8": 0.3}

# Options that choose other kernels or number formats, which round differently; all others change no bit.
CHANGES_ROUNDING = (
    "graph_optimization",
    "inference_precision",
    "xnnpack",
    "winograd",
    "sgemm",
    "packing",
    "winograd_level",
)
ROUNDED_DIFFERENTLY = 0.1  # mean distance as above; of two unrelated tensors it is about 1


@pytest.fixture(scope="module", params=[f"{engine}-{precision}" for engine in ENGINES for precision in CLOSE_ENOUGH])
def bundle(request: pytest.FixtureRequest, bundles: Callable[[str, str], Path]) -> Bundle:
    return Bundle.open(bundles(*request.param.split("-")))


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Iterator[Engine]:
    opened = load_engine(bundle, threads=1)
    yield opened
    opened.close()


@pytest.fixture
def pixels(bundle: Bundle, deployed_student) -> np.ndarray:
    image = deployed_student.data_yaml.parent / "images" / "val" / "2.png"
    return letterbox(read_image(image), bundle.manifest.input.height, bundle.manifest.input.width)[0]


def test_outputs_are_float32_cells_by_channels_in_the_manifest_order(
    bundle: Bundle, engine: Engine, pixels: np.ndarray
) -> None:
    outputs = engine.infer(pixels)
    spec = bundle.manifest.input
    expected = [(spec.height // o.stride * (spec.width // o.stride), o.channels) for o in bundle.manifest.outputs]
    assert [output.shape for output in outputs] == expected
    assert {output.dtype for output in outputs} == {np.dtype(np.float32)}
    assert [(o.meaning, o.stride) for o in bundle.manifest.outputs] == [
        (meaning, stride) for meaning in ("box", "class") for stride in (8, 16, 32)
    ]


def test_the_raw_tensors_are_the_float_students(
    bundle: Bundle, engine: Engine, pixels: np.ndarray, deployed_student
) -> None:
    reference = TorchEngine(load_graph(deployed_student.checkpoint), bundle.manifest.input).infer(pixels)
    for spec, met, expected in zip(bundle.manifest.outputs, engine.infer(pixels), reference, strict=True):
        if spec.meaning == "class":  # below a score of 0.0003 a quantized output may end
            met, expected = np.maximum(met, -8), np.maximum(expected, -8)
        assert expected.std() > 0.1, "a dead output would agree with anything"
        assert np.abs(met - expected).mean() < CLOSE_ENOUGH[bundle.manifest.precision] * expected.std(), spec.name


def test_the_same_pixels_give_the_same_numbers(engine: Engine, pixels: np.ndarray) -> None:
    first = [output.copy() for output in engine.infer(pixels)]
    engine.infer(255 - pixels)
    for before, after in zip(first, engine.infer(pixels), strict=True):
        np.testing.assert_array_equal(before, after)


def test_other_pixels_give_other_numbers(engine: Engine, pixels: np.ndarray) -> None:
    first = [output.copy() for output in engine.infer(pixels)]
    for before, after in zip(first, engine.infer(255 - pixels), strict=True):
        assert not np.array_equal(before, after)


def test_the_pixels_are_left_as_they_were(engine: Engine, pixels: np.ndarray) -> None:
    before = pixels.copy()
    engine.infer(pixels)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: pixels[:, :-8],
        lambda pixels: pixels[0],
        lambda pixels: np.concatenate([pixels, pixels]),
        lambda pixels: pixels.transpose(0, 3, 1, 2),
        lambda pixels: pixels[..., :1],
        lambda pixels: pixels.astype(np.float32),
    ],
    ids=["fewer rows", "no batch", "batch of two", "channels first", "grey", "float"],
)
def test_an_input_of_another_shape_or_type_is_refused(
    engine: Engine, pixels: np.ndarray, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    with pytest.raises(EngineError, match=r"expected uint8 of shape \(1, 96, 96, 3\)"):
        engine.infer(change(pixels))


def test_it_says_what_runs(bundle: Bundle, engine: Engine) -> None:
    facts = dict(engine.facts())
    assert {"library", "version", "threads", "precision_asked"} <= facts.keys()
    assert facts["threads"] == 1
    assert facts["precision_asked"] == bundle.manifest.precision
    assert "precision" not in facts, "what is asked for is not what is executed"
    json.dumps(facts)


def test_the_models_own_tensors_say_the_same_numbers(bundle: Bundle, engine: RawEngine, pixels: np.ndarray) -> None:
    expected = engine.infer(pixels)
    for raw, cells in zip(engine.run(pixels), expected, strict=True):
        np.testing.assert_array_equal(raw.cells(), cells)
        some = np.array([0, 1, len(cells) - 1])
        np.testing.assert_array_equal(raw.at(some), cells[some])
        least = float(np.median(cells.max(axis=1)))
        np.testing.assert_array_equal(raw.above(least), np.flatnonzero(cells.max(axis=1) > np.float32(least)))
    quantized = bundle.manifest.engine == "tflite" and bundle.manifest.precision == "int8"
    assert all((raw.values.dtype == np.int8) == quantized for raw in engine.run(pixels))


def test_an_image_letterboxed_into_the_engines_own_input_gives_the_same_numbers(
    bundle: Bundle, engine: RawEngine, pixels: np.ndarray
) -> None:
    own = engine.own_buffer()
    assert (own is not None) == (bundle.manifest.engine == "tflite" and bundle.manifest.input.dtype == "int8")
    if own is None:
        return
    random = np.random.default_rng(5)
    for height, width in ((40, 90), (40, 90), (96, 96), (90, 40), (20, 30), (90, 40)):
        image = random.integers(0, 256, (height, width, 3), np.uint8)
        expected = engine.infer(letterbox(image, 96, 96)[0])
        if width > height:
            engine.infer(pixels)  # it overwrites what of the own input no image covers
        for _ in range(2):  # the second time the border must have outlived a run
            own.fill(image)
            for met, one in zip(engine.run(own.pixels), expected, strict=True):
                np.testing.assert_array_equal(met.cells(), one)


def test_what_infer_gave_stays_when_the_next_image_runs(engine: Engine, pixels: np.ndarray) -> None:
    first = engine.infer(pixels)
    copies = [output.copy() for output in first]
    engine.infer(255 - pixels)
    for output, copy in zip(first, copies, strict=True):
        np.testing.assert_array_equal(output, copy)


def test_pixels_in_any_memory_give_the_same_numbers(engine: Engine, pixels: np.ndarray) -> None:
    expected = engine.infer(pixels)
    frozen = pixels.copy()
    frozen.setflags(write=False)
    mirrored = pixels[:, ::-1, ::-1].copy()[:, ::-1, ::-1]
    reused = 255 - pixels
    engine.infer(reused)
    reused[...] = pixels  # the engine may be reading this very memory
    for other in (frozen, mirrored, reused):
        for met, output in zip(engine.infer(other), expected, strict=True):
            np.testing.assert_array_equal(met, output)


def test_every_option_may_take_every_value_and_is_recorded(bundle: Bundle, engine: Engine, pixels: np.ndarray) -> None:
    if bundle.manifest.precision != "int8":
        pytest.skip("options are the engine's, not the precision's: asked of int8 alone")
    expected = engine.infer(pixels)
    for name, option in OPTIONS[bundle.manifest.engine].items():
        for value in option.values or (1, 2):
            opened = load_engine(bundle, 1, {name: value})
            assert opened.facts()["options"][name] == value
            for met, output in zip(opened.infer(pixels), expected, strict=True):
                most = ROUNDED_DIFFERENTLY * output.std() if name in CHANGES_ROUNDING else 0.0
                assert np.abs(met - output).mean() <= most, (name, value)
            opened.close()


def test_the_callers_options_go_before_the_manifests_and_those_before_the_defaults(bundle: Bundle) -> None:
    name, option = next(iter(OPTIONS[bundle.manifest.engine].items()))
    other = next(value for value in option.values if value != option.default)
    asking = Bundle(bundle.path, dataclasses.replace(bundle.manifest, engine_options={name: other}))
    for opened, expected in (
        (load_engine(bundle, 1), option.default),
        (load_engine(asking, 1), other),
        (load_engine(asking, 1, {name: option.default}), option.default),
    ):
        assert opened.facts()["options"][name] == expected
        opened.close()


def test_an_unknown_option_or_value_is_refused_with_the_known_ones(bundle: Bundle) -> None:
    name, option = next(iter(OPTIONS[bundle.manifest.engine].items()))
    with pytest.raises(EngineError, match=f"the caller sets option 'turbo', {bundle.manifest.engine} has .*{name}"):
        load_engine(bundle, 1, {"turbo": True})
    with pytest.raises(EngineError, match=f"sets option '{name}' to 'most', expected one of {option.values[0]!r}"):
        load_engine(bundle, 1, {name: "most"})
    asking = Bundle(bundle.path, dataclasses.replace(bundle.manifest, engine_options={"turbo": 1}))
    with pytest.raises(EngineError, match="the manifest sets option 'turbo'"):
        load_engine(asking, 1)


def _with_output(bundle: Bundle, **changes: object) -> Bundle:
    first, *others = bundle.manifest.outputs
    outputs = (dataclasses.replace(first, **changes), *others)
    return Bundle(bundle.path, dataclasses.replace(bundle.manifest, outputs=outputs))


def _other_layout(bundle: Bundle) -> str:
    return {"NHWC": "NCHW", "NCHW": "NHWC"}[bundle.manifest.input.layout]


def _with_input(bundle: Bundle, **changes: object) -> Bundle:
    spec = dataclasses.replace(bundle.manifest.input, **changes)
    return Bundle(bundle.path, dataclasses.replace(bundle.manifest, input=spec))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bundle: _with_output(bundle, name="nowhere"), "has the outputs .*, its manifest names 'nowhere'"),
        (lambda bundle: _with_output(bundle, stride=16), "has output .* of shape .*, its manifest says"),
        (lambda bundle: _with_input(bundle, name="nothing"), "has the inputs .*, its manifest names 'nothing'"),
        (lambda bundle: _with_input(bundle, height=64), r"of shape \(1,.* 96, 96.*\), its manifest says \(1,.* 64, 96"),
        (lambda bundle: _with_input(bundle, layout=_other_layout(bundle)), r"of shape .*, its manifest says \(1, "),
    ],
    ids=["output name", "output stride", "input name", "input height", "input layout"],
)
def test_a_model_without_the_tensors_of_its_manifest_is_refused_when_it_is_opened(
    bundle: Bundle, change: Callable[[Bundle], Bundle], message: str
) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        load_engine(change(bundle), threads=1)
    assert str(caught.value).endswith("make the bundle again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threads", [0, 4 * (os.cpu_count() or 1) + 1, 100_000])
def test_a_senseless_number_of_threads_is_refused(bundle: Bundle, threads: int) -> None:
    with pytest.raises(EngineError, match=rf"^threads is {threads}, expected at (least|most) \d+"):
        load_engine(bundle, threads=threads)


def test_a_truncated_model_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "cut"
    copy.mkdir()
    for name in bundle.manifest.files:
        content = (bundle.path / name).read_bytes()
        (copy / name).write_bytes(content[: len(content) // 3])
    with pytest.raises(EngineError, match=r"refuses .*cut") as caught:
        load_engine(Bundle(copy, bundle.manifest), threads=1)
    assert "\n" not in str(caught.value)
