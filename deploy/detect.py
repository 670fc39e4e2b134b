"""`python -m deploy.detect`: run a bundle on images, videos or a camera, print what it finds and draw it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle, find_bundles
from deploy.cli import (
    INTERRUPTED_EXIT_CODE,
    log,
    number_within,
    one_line,
    positive_whole_number,
    run_command,
    unused_path,
    whole_folder,
)
from deploy.errors import BundleError, DatasetError, DeployError, SourceError
from deploy.findings import Finding, as_record, as_text, draw
from deploy.runtime import Classifier, Detector, Segmenter
from deploy.runtime.image import images_below
from deploy.runtime.recording import VideoWriter
from deploy.runtime.sources import VIDEO_SUFFIXES, Camera, Frame, ImageFiles, Source, VideoFile
from deploy.runtime.stream import FailedFrame, Stream
from deploy.runtime.stream_stats import StreamStats


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if bool(arguments.inputs) == bool(arguments.camera):
        parser.error("give images or videos, or else --camera")
    if arguments.out and arguments.no_draw:
        parser.error("--out is for drawings, which --no-draw leaves out")
    return run_command(lambda: _detect(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.detect",
        description="Find objects in images, videos or a camera's frames with a bundle, print them and draw them.",
    )
    parser.add_argument("inputs", nargs="*", type=Path, help="images, folders of images, or video files")
    parser.add_argument(
        "--camera", metavar="N", help="a camera's number, /dev/videoN, or an rtsp:// or http:// address"
    )
    parser.add_argument("--frames", type=positive_whole_number, metavar="N", help="end a video or a camera after N")
    parser.add_argument("--bundle", type=Path, help="bundle folder (default: the newest below runs/)")
    parser.add_argument("--out", type=Path, help="folder for the drawn images and videos (default: runs/detect/BUNDLE)")
    parser.add_argument("--no-draw", action="store_true", help="print only")
    parser.add_argument("--conf", type=_fraction, help="lowest score, 0..1 (default: the bundle's, 0.25)")
    parser.add_argument("--iou", type=_fraction, help="NMS overlap, 0..1 (default: the bundle's, 0.7)")
    parser.add_argument(
        "--max-det", type=positive_whole_number, help="most detections, or classes, an image (default: 300, or 5)"
    )
    parser.add_argument(
        "--threads", type=positive_whole_number, help="threads of one inference (default: all processors)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per frame instead of text")
    return parser


def _fraction(text: str) -> float:
    return number_within(0.0, 1.0, text)


@dataclass
class _Job:
    """One source and where its drawn frames go: images of these names, or one video."""

    source: Source
    name: str
    image_names: Sequence[str] = ()

    def sink(self, folder: Path) -> _Images | _Video:
        if self.image_names:
            return _Images(folder, self.image_names)
        return _Video(folder / f"{self.name}.mp4", self.source)


class _Images:
    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names

    def write(self, frame: Frame, drawn: NDArray[np.uint8]) -> None:
        from PIL import Image

        Image.fromarray(drawn).save(self._folder / f"{self._names[frame.index]}.jpg", quality=90)

    def close(self) -> None:
        """Every image is whole already."""


class _Video:
    def __init__(self, path: Path, source: Source) -> None:
        self._writer = VideoWriter(path, getattr(source, "fps", None))
        self._live = source.live

    def write(self, frame: Frame, drawn: NDArray[np.uint8]) -> None:
        self._writer.write(drawn, frame.timestamp_s if self._live else None)

    def close(self) -> None:
        self._writer.close()


def _detect(arguments: argparse.Namespace) -> int:
    with ExitStack() as opened:
        jobs = _jobs(arguments)
        for job in jobs:
            opened.callback(job.source.close)
        path = arguments.bundle or _newest_bundle()
        bundle = Bundle.open(path)
        model = _model(bundle, arguments)
        opened.callback(model.close)
        out = arguments.out or unused_path(Path("runs/detect") / Path(path).resolve().name)
        run = _Run(model, arguments)
        folder: AbstractContextManager[Path | None] = nullcontext() if arguments.no_draw else whole_folder(out)
        with folder as drawings:
            for job in jobs:
                run.job(job, drawings)
            run.check_any()
        if drawings is not None:
            log(f"drawn: {out}")
        return run.exit_code()


class _Run:
    """All jobs of one command, and how they ended."""

    def __init__(self, model: Detector | Segmenter | Classifier, arguments: argparse.Namespace) -> None:
        self._model = model
        self._json = arguments.json
        self._most = arguments.frames
        self._class_names = model.manifest.class_names
        self._failures: list[FailedFrame] = []
        self._processed = 0
        self._cut_short: KeyboardInterrupt | SourceError | None = None

    def job(self, job: _Job, folder: Path | None) -> None:
        """Run one source to its end; a camera's recording is kept whatever ends it."""
        sink = job.sink(folder) if folder is not None else None
        failed_before = len(self._failures)
        stream: Stream[Finding] = Stream(self._model, job.source, on_failed=self._failed)
        try:
            with stream:
                for number, (frame, found) in enumerate(stream, start=1):
                    self._result(frame, found, job)
                    if sink is not None:
                        sink.write(frame, draw(frame.pixels, found, self._class_names))
                    if not job.image_names and number == self._most:
                        break
        except (KeyboardInterrupt, SourceError) as end:
            if not job.source.live or not stream.stats().processed:
                raise
            self._cut_short = end
        finally:
            if sink is not None:
                sink.close()
        for failure in self._failures[failed_before:] if self._json else ():
            self._print(json.dumps({"image": failure.name, "error": one_line(failure.error)}))
        log(_summary(job.name, stream.stats()))

    def check_any(self) -> None:
        """Refuse an output without any frame.

        Raises:
            DatasetError: there was no frame, or none could be used.
        """
        if not self._processed:
            count = len(self._failures)
            raise DatasetError(f"none of {count} frames could be used: see above" if count else "there are no frames")

    def exit_code(self) -> int:
        """0, 1 if frames failed, 130 after Ctrl-C.

        Raises:
            SourceError: what ended a camera.
        """
        if isinstance(self._cut_short, SourceError):
            raise self._cut_short
        if self._cut_short is not None:
            log("interrupted: what was recorded up to here is kept")
            return INTERRUPTED_EXIT_CODE
        return 1 if self._failures else 0

    def _failed(self, failure: FailedFrame) -> None:
        self._failures.append(failure)
        log(f"error: {one_line(failure.error)}")

    def _result(self, frame: Frame, found: Finding, job: _Job) -> None:
        self._processed += 1
        record: dict[str, Any] = {"image": frame.name, **as_record(found, self._class_names)}
        if not job.image_names:
            record["timestamp_s"] = round(frame.timestamp_s, 3)
        self._print(json.dumps(record) if self._json else f"{frame.name}: {as_text(record)}")

    def _print(self, line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _summary(name: str, stats: StreamStats) -> str:
    counts = f"{stats.read} read, {stats.processed} done, {stats.dropped} dropped, {stats.failed} failed"
    abandoned = f", {stats.abandoned} left when it was stopped" if stats.abandoned else ""
    latency = f", latency p50 {1e3 * stats.latency_p50_s:.1f} ms, p99 {1e3 * stats.latency_p99_s:.1f} ms"
    return f"{name}: {counts}{abandoned}; {stats.fps:.1f} FPS{latency if stats.processed else ''}"


def _jobs(arguments: argparse.Namespace) -> list[_Job]:
    if arguments.camera:
        return [_Job(Camera(arguments.camera), "camera")]
    images, videos = _paths(arguments.inputs)
    names = list(_unique_stems([*images, *videos]))
    jobs = [_Job(ImageFiles(images), "images", names[: len(images)])] if images else []
    return jobs + [_Job(VideoFile(path), name) for path, name in zip(videos, names[len(images) :], strict=True)]


def _paths(given: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Image files and video files."""
    images: list[Path] = []
    videos: list[Path] = []
    for path in given:
        if path.is_dir():
            images += images_below(path)
        elif not path.exists():
            raise DatasetError(f"no image {path}: check the path")
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            videos.append(path)
        else:
            images.append(path)
    return images, videos


def _unique_stems(paths: Sequence[Path]) -> Iterator[str]:
    """The files' names without suffix; a name met before gets -2, -3, …"""
    names: set[str] = set()
    for path in paths:
        name, number = path.stem, 1
        while name in names:
            number += 1
            name = f"{path.stem}-{number}"
        names.add(name)
        yield name


def _newest_bundle() -> Path:
    bundles = find_bundles(Path("runs"))
    if not bundles:
        raise BundleError("no bundle below runs/: make one with python -m deploy.onnx, or give --bundle")
    log(f"bundle: {bundles[0]}")
    return bundles[0]


def _model(bundle: Bundle, arguments: argparse.Namespace) -> Detector | Segmenter | Classifier:
    given = {name: getattr(arguments, name) for name in ("conf", "iou", "max_det")}
    if bundle.manifest.task == "classify":
        if given["conf"] is not None or given["iou"] is not None:
            raise DeployError(f"{bundle.path} classifies: --conf and --iou are for detections, leave them out")
        top_k = {} if given["max_det"] is None else {"top_k": given["max_det"]}
        return Classifier(bundle, **top_k, threads=arguments.threads)
    defaults = bundle.manifest.thresholds
    chosen = {name: getattr(defaults, name) if value is None else value for name, value in given.items()}
    if bundle.manifest.task == "segment":
        return Segmenter(bundle, **chosen, threads=arguments.threads)
    return Detector(bundle, **chosen, threads=arguments.threads)


if __name__ == "__main__":
    sys.exit(main())
