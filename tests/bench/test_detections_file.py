"""The file that keeps what a bundle detected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.accuracy import ImageDetections, ImageTruth, score
from bench.detections_file import read_detections, write_detections
from bench.errors import BenchError
from deploy.runtime import Detections

FOUND = [
    ImageDetections(np.array([[1.5, 2, 30, 40], [0, 0, 9, 9]]), np.array([0.75, 0.001]), np.array([1, 0])),
    Detections.empty(),
    ImageDetections(np.array([[7, 8, 90, 100.25]]), np.array([0.5]), np.array([79])),
]
TRUTH = [
    ImageTruth(np.array([[1.1, 2.2, 30.3, 40.4]]), np.array([1])),
    ImageTruth(np.zeros((0, 4)), np.zeros(0, np.int64)),
    ImageTruth(np.array([[7, 8, 90, 100], [0, 0, 5, 5.0]]), np.array([79, 2])),
]
IMAGES = ["/data/a.jpg", "/data/ü b'\".jpg", "/data/c.jpg"]


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "detections.npz"
    write_detections(file, IMAGES, FOUND, TRUTH, ["first", "zweite ß"])
    read = read_detections(file)
    assert read.images == tuple(IMAGES)
    assert read.class_names == ("first", "zweite ß")
    assert read.truths is not None
    for written, found in zip(FOUND, read.detections, strict=True):
        np.testing.assert_array_equal(found.boxes_xyxy, np.asarray(written.boxes_xyxy, np.float32))
        np.testing.assert_array_equal(found.scores, np.asarray(written.scores, np.float32))
        assert found.class_ids.tolist() == written.class_ids.tolist()
    for known, truth in zip(TRUTH, read.truths, strict=True):
        np.testing.assert_array_equal(truth.boxes_xyxy, known.boxes_xyxy)  # exact: mAP must not change
        assert truth.class_ids.tolist() == known.class_ids.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["detections.npz"]


def test_accuracy_scored_from_the_file_equals_that_scored_before_writing(tmp_path: Path) -> None:
    as_float32 = [
        ImageDetections(np.asarray(f.boxes_xyxy, np.float32), np.asarray(f.scores, np.float32), f.class_ids)
        for f in FOUND
    ]
    write_detections(tmp_path / "d.npz", IMAGES, as_float32, TRUTH)
    read = read_detections(tmp_path / "d.npz")
    assert read.truths is not None
    assert score(read.detections, read.truths, 80).map50_95 == score(as_float32, TRUTH, 80).map50_95 > 0


def test_truth_and_class_names_may_be_absent_and_nothing_detected_at_all(tmp_path: Path) -> None:
    write_detections(tmp_path / "d.npz", ["relative.jpg"], [Detections.empty()])
    read = read_detections(tmp_path / "d.npz")
    assert (read.truths, read.class_names) == (None, ())
    assert read.detections[0].boxes_xyxy.shape == (0, 4)
    assert Path(read.images[0]).is_absolute()


def test_lists_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="3 images but detections for 2"):
        write_detections(tmp_path / "d.npz", IMAGES, FOUND[:2])
    with pytest.raises(BenchError, match="3 images but truth for 1"):
        write_detections(tmp_path / "d.npz", IMAGES, FOUND, TRUTH[:1])
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "detections.npz"
    write_detections(file, IMAGES, FOUND)
    before = file.read_bytes()

    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_detections(file, IMAGES[:1], FOUND[:1])
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["detections.npz"]


def test_files_that_hold_no_detections_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"no detections at .*missing\.npz"):
        read_detections(tmp_path / "missing.npz")
    good = tmp_path / "good.npz"
    write_detections(good, IMAGES, FOUND)
    for name, content in {"text": b"hello", "cut": good.read_bytes()[:-200], "empty": b""}.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(BenchError, match=f"{name}.npz is not a detections file"):
            read_detections(tmp_path / f"{name}.npz")
    np.savez(tmp_path / "other.npz", scores=np.zeros(3))
    with pytest.raises(BenchError, match=r"other.npz is incomplete .*image_paths"):
        read_detections(tmp_path / "other.npz")
    beyond = {"image_paths": np.array(["a"]), "image_index": np.array([0, 1]), "boxes_xyxy": np.zeros((2, 4))}
    np.savez(tmp_path / "beyond.npz", scores=np.zeros(2), class_ids=np.zeros(2, int), **beyond)
    with pytest.raises(BenchError, match="image index out of order or beyond its 1 images"):
        read_detections(tmp_path / "beyond.npz")


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_file_is_refused_or_reads_as_it_was(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "d.npz"
    write_detections(file, IMAGES, FOUND, TRUTH)
    whole, content = read_detections(file), bytearray(file.read_bytes())
    draw = np.random.default_rng(seed)
    for position in draw.integers(0, len(content), 60).tolist():
        damaged = content.copy()
        damaged[position] ^= int(draw.integers(1, 256))
        file.write_bytes(damaged)
        try:
            read = read_detections(file)
        except BenchError:
            continue
        # A byte that no reader looks at.
        assert [d.scores.tolist() for d in read.detections] == [d.scores.tolist() for d in whole.detections]


def test_arrays_that_disagree_in_length_are_refused(tmp_path: Path) -> None:
    arrays = {"image_paths": np.array(["a"]), "image_index": np.array([0, 0]), "boxes_xyxy": np.zeros((2, 4))}
    np.savez(tmp_path / "d.npz", scores=np.zeros(1), class_ids=np.zeros(2, int), **arrays)
    with pytest.raises(BenchError, match=r"scores of shape \(1,\), expected \(2,\)"):
        read_detections(tmp_path / "d.npz")


def test_an_archive_with_pickled_objects_is_refused_and_not_run(tmp_path: Path) -> None:
    arrays = {"image_paths": np.array([print], object)}
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(BenchError, match="not a detections file"):
        read_detections(tmp_path / "d.npz")
