"""What a manifest must fulfil before anything relies on it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import BundleError

if TYPE_CHECKING:
    from deploy.bundle import InputSpec, Manifest, OutputSpec

ENGINES = ("onnx", "openvino", "tflite", "ncnn", "mnn")
# Of weights and activations: "w8" 8-bit weights and float arithmetic, "dynamic" 8-bit weights and activations whose
# ranges the runtime finds, "w8a16" 8-bit weights and 16-bit activations.
PRECISIONS = ("fp32", "fp16", "bf16", "w8", "dynamic", "w8a16", "int8")
TASKS = ("detect", "segment", "classify")
LAYOUTS = ("NHWC", "NCHW")
INPUT_DTYPES = ("uint8", "float32", "int8")
LETTERBOX_MULTIPLE = 32  # the coarsest stride of the pyramid
PROTOTYPE_STRIDE = 4

# Per task: how an image is brought to the input's size, and the meanings of the output tensors of one level.
FITS = {"detect": ("letterbox",), "segment": ("letterbox",), "classify": ("crop", "stretch")}
LEVEL_MEANINGS = {"detect": ("box", "class"), "segment": ("box", "class", "mask"), "classify": ("logits",)}

# A field, the value met, whether that will do, and what would.
_Condition = tuple[str, object, bool, str]


def check_manifest(manifest: Manifest, source: str) -> None:
    """Refuse a manifest with a value that no bundle can have.

    Args:
        manifest: as read, its fields perhaps of any type.
        source: what to call it in errors.

    Raises:
        BundleError: a wrong value, with its field.
    """
    if manifest.engine not in ENGINES:
        raise BundleError(f"{source} names engine {manifest.engine!r}, known are {', '.join(ENGINES)}")
    for field, met, fits, expected in _conditions(manifest):
        if not fits:
            raise wrong_value(source, field, met, expected)
    if manifest.model_file not in manifest.files:
        raise BundleError(f"{source} names model file {manifest.model_file!r} but lists no hash for it")
    for name in manifest.files:
        # A manifest from elsewhere must not reach outside its own folder.
        if Path(name).name != name or name in ("", ".", ".."):
            raise BundleError(f"{source} lists the file {name!r}, expected a plain file name")


def wrong_value(source: str, field: str, met: object, expected: str) -> BundleError:
    """The error of a field that has another value than it may."""
    shown = repr(met) if len(repr(met)) <= 60 else repr(met)[:59] + "…"
    return BundleError(f"{source}: {field} is {shown}, expected {expected}: make the bundle again")


def _conditions(manifest: Manifest) -> Iterator[_Condition]:
    """What a manifest must fulfil, lazily: each one may rely on those before it."""
    thresholds, names = manifest.thresholds, manifest.class_names
    yield "precision", manifest.precision, manifest.precision in PRECISIONS, _one_of(PRECISIONS)
    yield "task", manifest.task, manifest.task in TASKS, _one_of(TASKS)
    yield "files", manifest.files, _is_text_map(manifest.files), "file names with their SHA-256"
    yield "model_file", manifest.model_file, _is_text(manifest.model_file), "a file name"
    if manifest.task == "classify":
        fits = _is_whole(manifest.reg_max, 0) and manifest.reg_max == 0
        yield "reg_max", manifest.reg_max, fits, "0 for a classifier"
    else:
        yield "reg_max", manifest.reg_max, _is_whole(manifest.reg_max, 2), "a whole number of at least 2"
    yield "class_names", names, bool(names) and all(map(_is_text, names)), "a list of strings, not empty"
    yield from _input_conditions(manifest.input, FITS[manifest.task])
    yield from _output_conditions(manifest)
    for name, value in (("conf", thresholds.conf), ("iou", thresholds.iou)):
        yield f"thresholds.{name}", value, _is_number(value) and 0 <= value <= 1, "a number in 0..1"
    yield "thresholds.max_det", thresholds.max_det, _is_whole(thresholds.max_det, 1), "a whole number of at least 1"
    yield "student", manifest.student, _is_map(manifest.student), "an object"
    yield "tools", manifest.tools, _is_text_map(manifest.tools), "names with their versions"
    for name in ("calibration", "verified", "quantization"):
        record = getattr(manifest, name)
        yield name, record, record is None or _is_map(record), "an object or null"
    records = manifest.records
    yield "records", records, _is_map(records) and all(map(_is_map, records.values())), "names with objects"
    for name, path in (("data_yaml", manifest.data_yaml), ("data_root", manifest.data_root)):
        yield name, path, path is None or _is_text(path), "a path or null"
    options = manifest.engine_options
    yield "engine_options", options, _is_option_map(options), "names with texts, whole numbers, true or false"


def _input_conditions(spec: InputSpec, fits_of_task: tuple[str, ...]) -> Iterator[_Condition]:
    yield "input.name", spec.name, _is_text(spec.name), "a string"
    yield "input.fit", spec.fit, spec.fit in fits_of_task, _one_of(fits_of_task)
    multiple = LETTERBOX_MULTIPLE if spec.fit == "letterbox" else 1
    for name, side in (("height", spec.height), ("width", spec.width)):
        fits = _is_whole(side, multiple) and side % multiple == 0
        yield f"input.{name}", side, fits, f"a positive multiple of {multiple}"
    if spec.fit == "crop":
        least = max(spec.height, spec.width)
        yield "input.resize", spec.resize, _is_whole(spec.resize, least), f"a whole number of at least {least}"
    else:
        yield "input.resize", spec.resize, spec.resize is None, f"null for {spec.fit!r}"
    yield "input.layout", spec.layout, spec.layout in LAYOUTS, _one_of(LAYOUTS)
    yield "input.dtype", spec.dtype, spec.dtype in INPUT_DTYPES, _one_of(INPUT_DTYPES)
    yield "input.scale", spec.scale, _is_number(spec.scale) and spec.scale > 0, "a number above 0"
    fits = _is_whole(spec.pad_value, 0) and spec.pad_value <= 255
    yield "input.pad_value", spec.pad_value, fits, "a whole number in 0..255"


def _output_conditions(manifest: Manifest) -> Iterator[_Condition]:
    outputs = manifest.outputs
    yield "outputs", list(outputs), bool(outputs), "the tensors of the head"
    for index, output in enumerate(outputs):
        yield from _tensor_conditions(f"outputs[{index}]", output, manifest)
    expected = sorted(LEVEL_MEANINGS[manifest.task])
    levels = [output for output in outputs if output.meaning != "prototype"]
    for stride in sorted({output.stride for output in levels}):
        met = sorted(output.meaning for output in levels if output.stride == stride)
        yield f"outputs of stride {stride}", met, met == expected, _one_each(expected)
    if manifest.task == "segment":
        prototypes = [output.channels for output in outputs if output.meaning == "prototype"]
        yield "outputs of meaning prototype", len(prototypes), len(prototypes) == 1, "one tensor"
        counts = sorted({output.channels for output in levels if output.meaning == "mask"})
        yield "channels of the masks", counts, counts == prototypes, f"{prototypes[0]}, one per prototype"


def _tensor_conditions(field: str, output: OutputSpec, manifest: Manifest) -> Iterator[_Condition]:
    known = LEVEL_MEANINGS[manifest.task] + (("prototype",) if manifest.task == "segment" else ())
    layouts = ("NC",) if output.meaning == "logits" else LAYOUTS
    yield f"{field}.name", output.name, _is_text(output.name), "a string"
    yield f"{field}.meaning", output.meaning, output.meaning in known, _one_of(known)
    yield f"{field}.layout", output.layout, output.layout in layouts, _one_of(layouts)
    fixed_stride = {"prototype": PROTOTYPE_STRIDE, "logits": 0}.get(output.meaning)
    if fixed_stride is None:
        yield f"{field}.stride", output.stride, _is_whole(output.stride, 1), "a whole number of at least 1"
    else:
        fits = _is_whole(output.stride, fixed_stride) and output.stride == fixed_stride
        yield f"{field}.stride", output.stride, fits, f"{fixed_stride} for {output.meaning!r}"
    if output.meaning in ("mask", "prototype"):
        yield f"{field}.channels", output.channels, _is_whole(output.channels, 1), "a whole number of at least 1"
    else:
        count = 4 * manifest.reg_max if output.meaning == "box" else len(manifest.class_names)
        fits = _is_whole(output.channels, count) and output.channels == count
        yield f"{field}.channels", output.channels, fits, f"{count} for {output.meaning!r}"


def _one_of(known: tuple[str, ...]) -> str:
    return "one of " + ", ".join(known)


def _one_each(meanings: list[str]) -> str:
    return " and ".join(f"one {meaning!r}" for meaning in meanings)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_map(value: object) -> bool:
    return isinstance(value, dict)


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_option_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(option, str | int) for option in value.values())
