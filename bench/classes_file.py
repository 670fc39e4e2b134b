"""`classes.npz`: the likeliest classes of every image of the accuracy pass, and which class it is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.arrays_file import named_arrays, read_arrays, write_arrays
from bench.errors import BenchError
from bench.wire import TopClasses

# Array to the kinds of numpy type it may be of.
_KINDS = {"image_paths": "U", "class_names": "U", "class_ids": "iu", "scores": "f", "truth": "iu"}


@dataclass(frozen=True, eq=False)
class ClassesFile:
    """Content of one `classes.npz`; image order is that of the data set.

    Attributes:
        images: absolute paths on the host.
        class_ids: (n, k) int64, likeliest first; -1 where a network named fewer.
        scores: (n, k) float32 in 0..1; 0 where there is no class.
        truth: (n,) int64, the class of each image.
        class_names: index is the class id.
    """

    images: tuple[str, ...]
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    truth: NDArray[np.int64]
    class_names: tuple[str, ...]


def write_classes(
    path: Path,
    images: Sequence[str | Path],
    found: Sequence[TopClasses],
    truth: NDArray[np.int64],
    class_names: Sequence[str],
) -> None:
    """Write the classes of a data set; a failure leaves no file.

    Args:
        path: the file to write, replaced if it exists.
        images: host path of every image, in data set order; recorded as absolute paths.
        found: one entry per image.
        truth: (n,) the class id of each image.
        class_names: index is the class id.

    Raises:
        BenchError: the lists differ in length.
        OSError: the file cannot be written.
    """
    if not len(images) == len(found) == len(truth):
        raise BenchError(f"{len(images)} images, classes for {len(found)}, truth for {len(truth)}: one each is needed")
    width = max((len(one.class_ids) for one in found), default=0)
    class_ids, scores = np.full((len(found), width), -1, np.int64), np.zeros((len(found), width), np.float32)
    for row, one in enumerate(found):
        class_ids[row, : len(one.class_ids)] = one.class_ids
        scores[row, : len(one.scores)] = one.scores
    arrays = {
        **named_arrays(images, class_names),
        "class_ids": class_ids,
        "scores": scores,
        "truth": np.asarray(truth, np.int64),
    }
    write_arrays(path, arrays)


def read_classes(path: Path) -> ClassesFile:
    """Read what `write_classes` wrote.

    Raises:
        BenchError: no such file, not an npz archive, an array missing or malformed.
    """
    arrays = read_arrays(path, "classes", "an image-folder", tuple(_KINDS))
    wrong = [name for name, kinds in _KINDS.items() if not arrays[name].ndim or arrays[name].dtype.kind not in kinds]
    if wrong:
        met = ", ".join(f"{name} of {arrays[name].dtype} {arrays[name].shape}" for name in wrong)
        raise BenchError(f"{path} is not a classes file (it has {met}): run the bench again")
    count, names = len(arrays["image_paths"]), len(arrays["class_names"])
    shapes = [arrays[name].shape for name in ("class_ids", "scores", "truth")]
    if shapes[0][:1] != (count,) or len(shapes[0]) != 2 or shapes[1] != shapes[0] or shapes[2] != (count,):
        raise BenchError(f"{path} has arrays of shapes {shapes} for {count} images: run the bench again")
    known = arrays["class_ids"].max(initial=-1), arrays["truth"].max(initial=-1)
    if max(known) >= names or arrays["truth"].min(initial=0) < 0:
        raise BenchError(f"{path} has class ids beyond its {names} names: run the bench again")
    return ClassesFile(
        tuple(map(str, arrays["image_paths"])),
        arrays["class_ids"].astype(np.int64),
        arrays["scores"].astype(np.float32),
        arrays["truth"].astype(np.int64),
        tuple(map(str, arrays["class_names"])),
    )
