"""`python -m bench.studies.soak`: tens of thousands of frames; does anything grow, drift or get lost?

Every bundle runs in a fresh process. The images of a folder go round and round through files, decoding, the stream and
the engine. Resident memory is sampled while it runs, every frame's latency is kept, and every image's detections are
held against those of its first time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from bench.errors import BenchError
from bench.machine import machine_facts
from bench.studies.page_file import refuse_existing, run_study, write_page
from bench.studies.soak_page import section, soak_plot
from bench.studies.soak_run import MEGABYTE, Soak, SoakJob, run_soak
from deploy.bundle import Bundle
from deploy.cli import log, positive_whole_number
from deploy.errors import DatasetError
from deploy.runtime import default_threads, read_image
from deploy.runtime.image import images_below

# Below this in all, growth cannot be told from the noise of sampling: the allocator gives pages back when it likes.
NOISE_BYTES = 1.0 * MEGABYTE


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_study(_parser(), _study, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.soak",
        description="Run bundles for long: is memory flat, are results the same, is every frame accounted for?",
    )
    parser.add_argument("--bundle", type=Path, action="append", required=True, help="bundle folder; may be repeated")
    parser.add_argument("--images", type=Path, required=True, help="folder of images, which go round and round")
    parser.add_argument("--frames", type=positive_whole_number, default=50_000, help="default: %(default)s")
    parser.add_argument(
        "--imgsz-source", type=positive_whole_number, metavar="PX", help="scale the images to this longer side first"
    )
    parser.add_argument(
        "--threads",
        type=positive_whole_number,
        default=default_threads(),
        help="of one inference (default: %(default)s)",
    )
    parser.add_argument(
        "--most-growth", type=float, default=0.5, metavar="MB", help="per 10 000 frames (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="markdown file to write, with a plot beside it (default: stdout)")
    return parser


def _study(arguments: argparse.Namespace, command: str) -> int:
    plot_path = arguments.out.with_suffix(".svg") if arguments.out else None
    refuse_existing(arguments.out)
    refuse_existing(plot_path)
    bundles = [Bundle.open(path) for path in arguments.bundle]
    with tempfile.TemporaryDirectory() as folder:
        images = _images(arguments, Path(folder))
        soaks = [_in_fresh_process(bundle, images, arguments) for bundle in bundles]
    failures = [faults(soak, arguments.most_growth * MEGABYTE) for soak in soaks]
    text = section(soaks, failures, command, machine_facts(), arguments.most_growth, plot_path)
    write_page(text, arguments.out)
    if plot_path:
        write_page(soak_plot(soaks), plot_path)
    for soak, found in zip(soaks, failures, strict=True):
        for failure in found:
            log(f"failed: {soak.name}: {failure}")
    return 1 if any(failures) else 0


def faults(soak: Soak, most_growth_bytes: float) -> list[str]:
    """What is wrong with a soak, one line each; nothing if all is well.

    Args:
        soak: the measurement.
        most_growth_bytes: of resident memory, per 10 000 frames; less than `NOISE_BYTES` in all is never too much.
    """
    stats, found = soak.stats, []
    if stats.read != stats.processed + stats.dropped + stats.failed + stats.abandoned or stats.read != soak.job.frames:
        found.append(f"{soak.job.frames} frames were to be read, their fates are {stats}")
    if stats.processed != stats.read:
        found.append(f"{stats.read - stats.processed} of {stats.read} frames have no result")
    if soak.changed_results:
        found.append(f"{soak.changed_results} results differ from their image's first")
    slope = soak.growth_bytes_per_frame
    if slope * soak.measured_frames > NOISE_BYTES and slope * 10_000 > most_growth_bytes:
        found.append(
            f"memory grows by {slope * 10_000 / MEGABYTE:.2f} MB per 10 000 frames, at most "
            f"{most_growth_bytes / MEGABYTE:g} are allowed"
        )
    return found


def _images(arguments: argparse.Namespace, folder: Path) -> list[Path]:
    if not arguments.images.is_dir():
        raise DatasetError(f"{arguments.images} is no folder of images: check --images")
    found = images_below(arguments.images)
    return [_scaled(path, arguments.imgsz_source, folder / f"{index}.jpg") for index, path in enumerate(found)]


def _scaled(path: Path, longer_side: int | None, target: Path) -> Path:
    if longer_side is None:
        return path
    from PIL import Image

    image = Image.fromarray(read_image(path))
    image.thumbnail((longer_side, longer_side))
    image.save(target, quality=90)
    return target


def _in_fresh_process(bundle: Bundle, images: Sequence[Path], arguments: argparse.Namespace) -> Soak:
    job = SoakJob(bundle.path, tuple(images), arguments.frames, arguments.threads)
    log(f"{bundle.path.name}: {arguments.frames} frames from {len(images)} images")
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(run_soak, job).result()
    except BrokenProcessPool as error:
        raise BenchError(f"the process that ran {bundle.path.name} has died: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
