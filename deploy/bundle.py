"""The self-describing deployable: one compiled model and a manifest to run it by and to trust it by."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.errors import BundleError

MANIFEST_NAME = "manifest.json"
SCHEMA = 1
ENGINES = ("onnx", "openvino", "tflite")
PRECISIONS = ("fp32", "fp16", "int8")
LAYOUTS = ("NHWC", "NCHW")
INPUT_DTYPES = ("uint8", "float32", "int8")
MEANINGS = ("box", "class")
INPUT_MULTIPLE = 32  # the coarsest stride of the pyramid

# A field, the value met, whether that will do, and what would.
_Condition = tuple[str, object, bool, str]


@dataclass(frozen=True)
class InputSpec:
    """The one image input of a compiled model.

    Attributes:
        name: tensor name in the model.
        height: rows in pixels.
        width: columns in pixels.
        layout: "NHWC" or "NCHW", batch 1, three channels in RGB order.
        dtype: "uint8" (pixels 0..255 as they are; the model normalises), "float32" (pixel * scale) or
            "int8" (pixel - 128: the quantized form of pixel * scale).
        scale: what turns a pixel into the value the network was trained on, 1/255 for YOLOv8.
        pad_value: pixel value 0..255 of the letterbox border.
    """

    name: str
    height: int
    width: int
    layout: str = "NHWC"
    dtype: str = "float32"
    scale: float = 1.0 / 255.0
    pad_value: int = 114


@dataclass(frozen=True)
class OutputSpec:
    """One raw head tensor of one pyramid level.

    Attributes:
        name: tensor name in the model (an index in order of `Manifest.outputs` where a runtime has no names).
        meaning: "box" (DFL logits, 4 * reg_max channels, sides left, top, right, bottom) or "class" (logits).
        stride: input pixels per cell: 8, 16 or 32.
        channels: 4 * reg_max or the number of classes.
        layout: "NHWC" or "NCHW" of the model's own tensor.
    """

    name: str
    meaning: str
    stride: int
    channels: int
    layout: str


@dataclass(frozen=True)
class Thresholds:
    """Defaults of the detector: score and IoU in 0..1, and the most detections kept per image."""

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300


@dataclass(frozen=True)
class Manifest:
    """Everything needed to run a bundle and to trust it.

    Attributes:
        engine: one of `ENGINES`.
        precision: one of `PRECISIONS`, as asked of the tool chain.
        files: file name to SHA-256 hex digest, of every file beside the manifest.
        model_file: the file among `files` that the engine opens.
        input: the image input.
        outputs: raw head tensors, one per meaning and level.
        reg_max: DFL bins per box side (Generalized Focal Loss, Li et al. 2020, section 3.2).
        class_names: index is the class id.
        thresholds: defaults of the detector.
        student: name, SHA-256 and origin of the checkpoint this was made from.
        calibration: source, count, list SHA-256 of the calibration images; None for a float bundle.
        verified: accuracy and output drift measured when the bundle was made; None if not verified.
        tools: name to version of what made it.
        task: "detect".
        data_yaml: the student's data set where it is known, for a default validation set; may be None.
        schema: version of this file's layout.
    """

    engine: str
    precision: str
    files: Mapping[str, str]
    model_file: str
    input: InputSpec
    outputs: tuple[OutputSpec, ...]
    reg_max: int
    class_names: tuple[str, ...]
    student: Mapping[str, Any]
    tools: Mapping[str, str]
    calibration: Mapping[str, Any] | None = None
    verified: Mapping[str, Any] | None = None
    thresholds: Thresholds = Thresholds()
    task: str = "detect"
    data_yaml: str | None = None
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The manifest as the text of `manifest.json`, keys in a fixed order."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str, source: str) -> Manifest:
        """Read a manifest.

        Args:
            text: content of `manifest.json`.
            source: what to call it in errors.

        Raises:
            BundleError: not JSON, another schema, or a field missing, unknown, or of a wrong type or value.
        """
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise BundleError(f"{source} is not valid JSON ({error}): make the bundle again") from error
        if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
            met = fields.get("schema") if isinstance(fields, dict) else type(fields).__name__
            raise BundleError(f"{source} has schema {met!r}, this version reads {SCHEMA}: make the bundle again")
        names = fields.get("class_names")
        if isinstance(names, str):  # would pass for a list of its letters
            raise _wrong(source, "class_names", names, "a list of strings")
        try:
            manifest = Manifest(
                **{
                    **fields,
                    "input": InputSpec(**fields["input"]),
                    "outputs": tuple(OutputSpec(**output) for output in fields["outputs"]),
                    "thresholds": Thresholds(**fields["thresholds"]),
                    "class_names": tuple(fields["class_names"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise BundleError(f"{source} is incomplete ({error}): make the bundle again") from error
        manifest._check(source)
        return manifest

    def _check(self, source: str) -> None:
        if self.engine not in ENGINES:
            raise BundleError(f"{source} names engine {self.engine!r}, known are {', '.join(ENGINES)}")
        for field, met, fits, expected in _conditions(self):
            if not fits:
                raise _wrong(source, field, met, expected)
        if self.model_file not in self.files:
            raise BundleError(f"{source} names model file {self.model_file!r} but lists no hash for it")
        for name in self.files:
            # A manifest from elsewhere must not reach outside its own folder.
            if Path(name).name != name or name in ("", ".", ".."):
                raise BundleError(f"{source} lists the file {name!r}, expected a plain file name")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest, all hashes verified."""

    path: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """The file the engine opens."""
        return self.path / self.manifest.model_file

    @property
    def size_bytes(self) -> int:
        """Bytes of all model files together, without the manifest."""
        return sum((self.path / name).stat().st_size for name in self.manifest.files)

    @property
    def sha256(self) -> str:
        """One hash for the whole bundle: of its manifest, which holds the hash of every other file."""
        return sha256_file(self.path / MANIFEST_NAME)

    @staticmethod
    def open(path: str | Path) -> Bundle:
        """Open a bundle folder and verify every file against its hash.

        Args:
            path: the folder, or the manifest inside it.

        Raises:
            BundleError: no such bundle, unreadable manifest, a file missing, or a changed byte.
        """
        folder = Path(path)
        if folder.name == MANIFEST_NAME:
            folder = folder.parent
        manifest_path = folder / MANIFEST_NAME
        if not manifest_path.is_file():
            raise BundleError(f"{folder} is no bundle (no {MANIFEST_NAME}): make one with python -m deploy.onnx")
        try:
            text = manifest_path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{manifest_path} is not UTF-8 text: make the bundle again") from error
        manifest = Manifest.from_json(text, str(manifest_path))
        for name, expected in manifest.files.items():
            file = folder / name
            if not file.is_file():
                raise BundleError(f"{folder} lacks {name}, which its manifest lists: copy or make the bundle again")
            met = sha256_file(file)
            if met != expected:
                raise BundleError(
                    f"{file} has SHA-256 {met[:12]}…, its manifest says {expected[:12]}…: the file was changed, "
                    "copy or make the bundle again"
                )
        return Bundle(folder, manifest)


def sha256_file(path: Path) -> str:
    """SHA-256 hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_bundles(root: Path) -> list[Path]:
    """Bundle folders below `root`, newest first, unfinished ones left out."""
    manifests = [path for path in root.rglob(MANIFEST_NAME) if not path.parent.name.startswith(".")]
    return [path.parent for path in sorted(manifests, key=lambda p: (-p.stat().st_mtime_ns, str(p)))]


def _wrong(source: str, field: str, met: object, expected: str) -> BundleError:
    shown = repr(met) if len(repr(met)) <= 60 else repr(met)[:59] + "…"
    return BundleError(f"{source}: {field} is {shown}, expected {expected}: make the bundle again")


def _conditions(manifest: Manifest) -> Iterator[_Condition]:
    """What a manifest must fulfil, lazily: each one may rely on those before it."""
    thresholds, names = manifest.thresholds, manifest.class_names
    yield "precision", manifest.precision, manifest.precision in PRECISIONS, _one_of(PRECISIONS)
    yield "task", manifest.task, manifest.task == "detect", "'detect'"
    yield "files", manifest.files, _is_text_map(manifest.files), "file names with their SHA-256"
    yield "model_file", manifest.model_file, _is_text(manifest.model_file), "a file name"
    yield "reg_max", manifest.reg_max, _is_whole(manifest.reg_max, 2), "a whole number of at least 2"
    yield "class_names", names, bool(names) and all(map(_is_text, names)), "a list of strings, not empty"
    yield from _input_conditions(manifest.input)
    yield from _output_conditions(manifest)
    for name, value in (("conf", thresholds.conf), ("iou", thresholds.iou)):
        yield f"thresholds.{name}", value, _is_number(value) and 0 <= value <= 1, "a number in 0..1"
    yield "thresholds.max_det", thresholds.max_det, _is_whole(thresholds.max_det, 1), "a whole number of at least 1"
    yield "student", manifest.student, _is_map(manifest.student), "an object"
    yield "tools", manifest.tools, _is_text_map(manifest.tools), "names with their versions"
    for name, record in (("calibration", manifest.calibration), ("verified", manifest.verified)):
        yield name, record, record is None or _is_map(record), "an object or null"
    yield "data_yaml", manifest.data_yaml, manifest.data_yaml is None or _is_text(manifest.data_yaml), "a path or null"


def _input_conditions(spec: InputSpec) -> Iterator[_Condition]:
    yield "input.name", spec.name, _is_text(spec.name), "a string"
    for name, side in (("height", spec.height), ("width", spec.width)):
        fits = _is_whole(side, INPUT_MULTIPLE) and side % INPUT_MULTIPLE == 0
        yield f"input.{name}", side, fits, f"a positive multiple of {INPUT_MULTIPLE}"
    yield "input.layout", spec.layout, spec.layout in LAYOUTS, _one_of(LAYOUTS)
    yield "input.dtype", spec.dtype, spec.dtype in INPUT_DTYPES, _one_of(INPUT_DTYPES)
    yield "input.scale", spec.scale, _is_number(spec.scale) and spec.scale > 0, "a number above 0"
    fits = _is_whole(spec.pad_value, 0) and spec.pad_value <= 255
    yield "input.pad_value", spec.pad_value, fits, "a whole number in 0..255"


def _output_conditions(manifest: Manifest) -> Iterator[_Condition]:
    outputs = manifest.outputs
    yield "outputs", list(outputs), bool(outputs), "the tensors of the head"
    for index, output in enumerate(outputs):
        field = f"outputs[{index}]"
        yield f"{field}.name", output.name, _is_text(output.name), "a string"
        yield f"{field}.meaning", output.meaning, output.meaning in MEANINGS, _one_of(MEANINGS)
        yield f"{field}.layout", output.layout, output.layout in LAYOUTS, _one_of(LAYOUTS)
        yield f"{field}.stride", output.stride, _is_whole(output.stride, 1), "a whole number of at least 1"
        count = 4 * manifest.reg_max if output.meaning == "box" else len(manifest.class_names)
        fits = _is_whole(output.channels, count) and output.channels == count
        yield f"{field}.channels", output.channels, fits, f"{count} for {output.meaning!r}"
    for stride in sorted({output.stride for output in outputs}):
        met = sorted(output.meaning for output in outputs if output.stride == stride)
        yield f"outputs of stride {stride}", met, met == list(MEANINGS), "one 'box' and one 'class'"


def _one_of(known: tuple[str, ...]) -> str:
    return "one of " + ", ".join(known)


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
