"""The self-describing deployable: one compiled model and a manifest to run it by and to trust it by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deploy.errors import BundleError
from deploy.manifest_checks import ENGINES, PRECISIONS, TASKS, check_manifest, wrong_value

__all__ = [
    "ENGINES",
    "MANIFEST_NAME",
    "PRECISIONS",
    "SCHEMA",
    "TASKS",
    "Bundle",
    "InputSpec",
    "Manifest",
    "OutputSpec",
    "Thresholds",
    "find_bundles",
    "sha256_file",
]

MANIFEST_NAME = "manifest.json"
SCHEMA = 2
READABLE_SCHEMAS = (1, 2)  # 1 lacked `quantization` and `records`


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
        fit: how an image of any size becomes height x width. "letterbox": scaled whole into it, the rest border
            (detectors). "crop": its short side resized to `resize` pixels, then the centre cut out. "stretch":
            resized to height x width whatever its proportions. The last two, for classifiers, resize bilinearly and
            antialiased, as Pillow and torchvision do with images: that is how such networks are trained.
        resize: pixels of the short side before a "crop", at least height and width; None otherwise.
    """

    name: str
    height: int
    width: int
    layout: str = "NHWC"
    dtype: str = "float32"
    scale: float = 1.0 / 255.0
    pad_value: int = 114
    fit: str = "letterbox"
    resize: int | None = None


@dataclass(frozen=True)
class OutputSpec:
    """One raw output tensor.

    Attributes:
        name: tensor name in the model (an index in order of `Manifest.outputs` where a runtime has no names).
        meaning: of one pyramid level: "box" (DFL logits, 4 * reg_max channels, sides left, top, right, bottom),
            "class" (logits) and, for segmentation, "mask" (coefficients of the prototypes); of a whole segmentation
            model: "prototype"; of a whole classifier: "logits".
        stride: input pixels per cell: 8, 16 or 32 for a level, 4 for prototypes, 0 for a classifier's logits.
        channels: 4 * reg_max, the number of classes, or the number of prototypes.
        layout: of the model's own tensor: "NHWC" or "NCHW", "NC" for a classifier's logits (1, classes).
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
        outputs: raw output tensors, one per meaning and level.
        reg_max: DFL bins per box side (Generalized Focal Loss, Li et al. 2020, section 3.2); 0 for a classifier.
        class_names: index is the class id.
        thresholds: defaults of the detector.
        student: name, SHA-256 and origin of the checkpoint this was made from.
        calibration: source, count, list SHA-256 of the calibration images; None where there are none.
        quantization: the recipe: method of the ranges, layers that stayed in float; None for a float bundle.
        verified: accuracy and output drift measured when the bundle was made; None if not verified.
        tools: name to version of what made it.
        task: one of `TASKS`.
        data_yaml: the student's data set where it is known, for a default validation set; may be None.
        data_root: the same for a classifier: an image folder with a folder per split and class; may be None.
        engine_options: settings of the engine that the bundle was verified with, as `deploy.runtime.options` knows
            them; those it does not name are that file's defaults.
        records: what further steps of the making say of themselves, each an object by the step's name.
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
    data_root: str | None = None
    engine_options: Mapping[str, str | int | bool] = field(default_factory=dict)
    quantization: Mapping[str, Any] | None = None
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The manifest as the text of `manifest.json`, keys in a fixed order."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> None:
        """Write it into a bundle's folder, in the place of one that is there."""
        (folder / MANIFEST_NAME).write_text(self.to_json(), encoding="utf-8")

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
        if not isinstance(fields, dict) or fields.get("schema") not in READABLE_SCHEMAS:
            met = fields.get("schema") if isinstance(fields, dict) else type(fields).__name__
            known = " and ".join(map(str, READABLE_SCHEMAS))
            raise BundleError(f"{source} has schema {met!r}, this version reads {known}: make the bundle again")
        names = fields.get("class_names")
        if isinstance(names, str):  # would pass for a list of its letters
            raise wrong_value(source, "class_names", names, "a list of strings")
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
        check_manifest(manifest, source)
        return manifest


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
