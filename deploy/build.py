"""From a student to a bundle: calibration list, compiling, manifest, verification, in that order."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.bundle import Bundle, Manifest, sha256_file
from deploy.calibration import YAML_SUFFIXES, CalibrationList, choose_calibration
from deploy.cli import log, whole_folder
from deploy.dataset import data_set_classes
from deploy.errors import CalibrationError, ExportError
from deploy.image_folder import TRAIN, few, held_out_splits, is_image_folder, load_image_folder
from deploy.quantization import AS_THE_TARGET_DOES, CALIBRATED, Quantization
from deploy.runtime.options import OPTIONS
from deploy.steps import step
from deploy.student import REPAIR_RECORD, Student
from deploy.target import Compiled, Job, Target

if TYPE_CHECKING:
    from deploy.graph import Graph

DEFAULT_CALIBRATION_IMAGES = 128
DEFAULT_MAX_DROP_POINTS = 1.0
# At most, so that it stays a matter of seconds; one image in a hundred is a whole point of top-1.
VERIFY_IMAGES = {"detect": 64, "segment": 64, "classify": 1000}
FEW_CALIBRATION_IMAGES = 8
BLAME_IMAGES = 4
FALLBACK_IMGSZ = {"detect": 640, "segment": 640, "classify": 224}


def build_bundle(
    target: Target,
    student: Student,
    out: Path,
    *,
    precision: str = "fp32",
    quantization: Quantization = AS_THE_TARGET_DOES,
    repair: Sequence[str] = (),
    imgsz: int | None = None,
    calibration: Path | None = None,
    calibration_images: int = DEFAULT_CALIBRATION_IMAGES,
    verify: bool = True,
    max_drop_points: float = DEFAULT_MAX_DROP_POINTS,
) -> Bundle:
    """Compile a student into a bundle and verify it.

    Args:
        target: the format.
        student: what to compile.
        out: the bundle folder to make; must not exist.
        precision: one of the target's `precisions`.
        quantization: what is asked of the quantizer.
        repair: methods of `deploy.repair.names` that change the weights before a calibrated precision.
        imgsz: side of the input in pixels; default that of the training, else 640.
        calibration: a data.yaml, the root of an image-folder data set, or a folder of images; default the student's
            own training images.
        calibration_images: how many of them at most.
        verify: measure the bundle against the student, where a validation set is known.
        max_drop_points: largest loss of mAP50-95, or of a classifier's top-1, in points (0..100) that is accepted.

    Raises:
        DeployError: the student, the calibration images or the data set cannot be used, or the bundle loses more
            than is allowed. Nothing is left at `out` then.
    """
    _require(target)
    check_precision(target, precision)
    from deploy.graph import check_imgsz, load_graph

    if out.exists():
        raise ExportError(f"{out} already exists: choose another --out or remove it")
    images = None
    if precision in CALIBRATED:
        images = calibration_list(student, calibration, calibration_images)
    with step(f"loading {student.checkpoint.name} of {student.name}"):
        graph = load_graph(student.checkpoint, student.record)
    _check_classes(calibration, graph)
    fallback = FALLBACK_IMGSZ[graph.task]
    size = check_imgsz(imgsz or student.imgsz or graph.trained_imgsz or fallback, graph)
    validation = _validation_data(student, calibration, graph.task)
    with whole_folder(out) as folder:
        graph, compiled_graph, records = _repaired(student, graph, images, size, repair)
        job = Job(compiled_graph, precision, size, images, folder, quantization)
        count = f", calibrated on {len(images)} images" if images else ""
        with step(f"compiling for {target.engine}, {precision}, {size} px{count}"):
            compiled = target.compile(job)
        manifest = replace(_manifest(target, student, job, compiled, validation), records=records)
        manifest.write(folder)
        if verify and validation is None:
            kind = "the root of an image-folder data set" if graph.task == "classify" else "a data.yaml"
            log(f"not verified: no validation set is known (give --calibration {kind})")
        elif verify and validation is not None:
            from deploy.verify import verify_bundle

            verified = verify_bundle(
                Bundle.open(folder),
                graph,
                validation,
                VERIFY_IMAGES[graph.task],
                max_drop_points,
                student.held_out_split if validation == student.data else None,
                partial(_costly_layers, job),
            )
            replace(manifest, verified=verified).write(folder)
    return Bundle.open(out)


def _repaired(
    student: Student, graph: Graph, images: CalibrationList | None, imgsz: int, methods: Sequence[str]
) -> tuple[Graph, Graph, dict[str, dict[str, Any]]]:
    """The float student to verify against, the network to compile, and what the manifest says of their difference."""
    if REPAIR_RECORD in student.record:
        from deploy.graph import load_graph
        from deploy.repair.student_folder import original_checkpoint

        original = original_checkpoint(student)
        if methods:
            raise ExportError(f"{student.checkpoint} is repaired already: leave --repair out, or give its original")
        reference = graph if original is None else load_graph(original)
        return reference, graph, {REPAIR_RECORD: dict(student.record[REPAIR_RECORD])}
    if images is None or not methods:
        return graph, graph, {}
    from deploy.repair.methods import repair

    repaired = repair(graph, images, imgsz, methods)
    return graph, repaired.graph, {REPAIR_RECORD: repaired.record}


def _check_classes(calibration: Path | None, graph: Graph) -> None:
    """Refuse a data set of other classes before it is calibrated on; a folder of images has none."""
    if calibration is None:
        return
    if calibration.suffix in YAML_SUFFIXES:
        classes = data_set_classes(calibration)
        fits = classes == graph.class_names
    elif calibration.is_dir() and is_image_folder(calibration):
        classes = load_image_folder(calibration, None if held_out_splits(calibration) else TRAIN).class_names
        fits = sorted(classes) == sorted(graph.class_names)
    else:
        return
    if not fits:
        raise CalibrationError(
            f"{calibration} has the {len(classes)} classes {few(classes)}, the student the {len(graph.class_names)} "
            f"classes {few(graph.class_names)}: give --calibration a data set of the student's classes, or a folder of "
            "training images"
        )


def _costly_layers(job: Job) -> list[str]:
    """The blocks whose quantization costs most, of a bundle that was calibrated; none of another."""
    if job.calibration is None:
        return []
    from deploy.sensitivity.measure import layers_to_blame

    with step("finding the layers to blame"):
        return [name for name, _ in layers_to_blame(job.graph, job.calibration.images[:BLAME_IMAGES], job.imgsz)]


def check_precision(target: Target, precision: str) -> None:
    """Refuse a precision that a target cannot be compiled to.

    Raises:
        ExportError: naming those that it can.
    """
    if precision not in target.precisions:
        raise ExportError(f"{target.engine} has no {precision}: give --precision {', '.join(target.precisions)}")


def _require(target: Target) -> None:
    packages = {"torch": "torch", "ultralytics": "ultralytics", "yaml": "pyyaml", **target.packages}
    missing = [distribution for module, distribution in packages.items() if find_spec(module) is None]
    if missing:
        raise ExportError(
            f"compiling for {target.engine} needs {', '.join(missing)}, which is not installed: "
            "pip install -e '.[train]' in the checkout of edge-distill"
        )


def calibration_list(student: Student, source: Path | None, count: int) -> CalibrationList:
    """At most `count` training images, of `source` or of the student's own data set; see `choose_calibration`.

    Raises:
        CalibrationError: there are none to be found.
    """
    own = student.data
    if source is None and own is None:
        raise CalibrationError(
            f"{student.checkpoint} has no student.json that names its training images: "
            "give --calibration a data.yaml or a folder of training images"
        )
    if source is None and own is not None and not own.exists():
        raise CalibrationError(
            f"the student's data set {own} does not exist: give --calibration a data.yaml or a folder"
        )
    known = [own] if own is not None and own.exists() else []
    if own is not None and not known:
        log(f"the student's data set {own} is gone: its validation images cannot be kept out of the calibration")
    images = choose_calibration(source or known[0], count, known)
    if len(images) < FEW_CALIBRATION_IMAGES:
        kind = "image" if len(images) == 1 else "images"
        log(f"warning: the ranges of {len(images)} calibration {kind} fit few others: give {FEW_CALIBRATION_IMAGES}")
    if images.in_validation:
        log(
            f"warning: {images.source} validates on its training images, so {images.in_validation} calibration "
            "images are validation images: its accuracy is no measure"
        )
    return images


def _validation_data(student: Student, calibration: Path | None, task: str) -> Path | None:
    """What to verify on: a data.yaml or, for a classifier, the root of an image-folder data set."""
    if student.data is not None and student.data.exists():
        return student.data
    if calibration is None:
        return None
    if task == "classify":
        return calibration if calibration.is_dir() and held_out_splits(calibration) else None
    return calibration if calibration.suffix in YAML_SUFFIXES else None


def _manifest(target: Target, student: Student, job: Job, compiled: Compiled, validation: Path | None) -> Manifest:
    tools = {"python": platform.python_version()}
    for distribution in ("torch", "ultralytics", *target.packages.values()):
        tools[distribution] = version(distribution)
    with suppress(PackageNotFoundError):  # run from a checkout that is not installed
        tools["edge-distill"] = version("edge-distill")
    data = validation or student.data  # one that is there before one that is gone
    classifies = job.graph.task == "classify"
    return Manifest(
        engine=target.engine,
        precision=job.precision,
        files={file.name: sha256_file(file) for file in sorted(job.folder.iterdir())},
        model_file=compiled.model_file,
        input=compiled.input,
        outputs=compiled.outputs,
        reg_max=job.graph.reg_max,
        class_names=job.graph.class_names,
        engine_options=_engine_options(target.engine),
        student=student.origin(job.graph.parameters),
        tools=tools,
        calibration=None if job.calibration is None else job.calibration.record(),
        quantization=None if compiled.recipe is None else compiled.recipe.record(),
        task=job.graph.task,
        data_yaml=None if data is None or classifies else str(data.resolve()),
        data_root=str(data.resolve()) if data is not None and classifies else None,
    )


def _engine_options(engine: str) -> dict[str, str | int | bool]:
    """The settings that the bundle is verified with, so that it runs with the same ones wherever it is opened."""
    # Whether opened models are kept on disk is no setting of the model.
    return {name: option.default for name, option in OPTIONS[engine].items() if name != "model_cache"}
