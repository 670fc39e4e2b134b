"""The study's adapters: a decoded model, run by this project's letterbox and NMS, finds what the raw tensors give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ultralytics", reason="the studies need the [train] extra")

import torch

from bench.accuracy import ImageTruth
from bench.studies.decoded import open_decoded
from bench.studies.peers import export_by_ultralytics
from bench.studies.scoring import Row, detect_decoded, table
from deploy.graph import load_graph
from deploy.runtime import Detections, read_image
from deploy.verify import checkpoint_detector


def _same(met: Detections, expected: Detections) -> None:
    assert len(expected) > 50
    np.testing.assert_array_equal(met.class_ids, expected.class_ids)
    np.testing.assert_allclose(met.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(met.boxes_xyxy, expected.boxes_xyxy, atol=1e-2)


@pytest.fixture
def image(deployed_student) -> np.ndarray:
    return read_image(deployed_student.data_yaml.parent / "images/val/2.png")


def test_a_decoded_model_scores_as_its_raw_tensors_do(deployed_student, image: np.ndarray) -> None:
    model = torch.load(deployed_student.checkpoint, weights_only=False)["model"].float().eval()

    def decoded(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)[0][0].numpy()

    expected = checkpoint_detector(load_graph(deployed_student.checkpoint), 96)(image)
    _same(detect_decoded(decoded, image, 96), expected)


def test_ultralytics_int8_export_is_made_and_finds_the_same_best_object(
    deployed_student, image: np.ndarray, tmp_path: Path
) -> None:
    path = export_by_ultralytics(deployed_student.checkpoint, "onnx", deployed_student.data_yaml, 96, tmp_path)
    found = detect_decoded(open_decoded(path, threads=1), image, 96)
    expected = checkpoint_detector(load_graph(deployed_student.checkpoint), 96)(image)
    same_class = found.class_ids == expected.class_ids[0]
    distances = np.abs(found.boxes_xyxy[same_class] - expected.boxes_xyxy[0]).max(axis=1)
    assert distances.min() < 8  # pixels, of an untrained network in int8
    assert abs(found.scores.max() - expected.scores.max()) < 0.15


def test_the_table_holds_scores_differences_and_failures() -> None:
    box = np.array([[10.0, 10.0, 30.0, 30.0]], np.float32)
    truths = [ImageTruth(box.astype(np.float64), np.array([0])) for _ in range(4)]
    right = Detections(box, np.array([0.9], np.float32), np.array([0]))
    rows = [
        Row("student", 6_500_000, (right,) * 4),
        Row("bundle", 3_200_000, (right, right, right, Detections.empty()), against="student"),
        Row("other", 0, (), failure="no such exporter"),
    ]
    lines = table(rows, truths, class_count=1, resamples=200)
    assert lines[0] == "| student | 6.5 | 100.00 | 100.00 |  |  |"
    cells = [cell.strip() for cell in lines[1].split("|")[1:-1]]
    # Three of four objects found: precision 1 up to recall 0.75, which is 76 of the 101 recalls.
    assert cells[:5] == ["bundle", "3.2", f"{100 * 76 / 101:.2f}", f"{100 * 76 / 101:.2f}", "student"]
    assert cells[5].startswith(f"{100 * 76 / 101 - 100:+.2f} [-")
    assert lines[2] == "| other | | not made: no such exporter | | | |"
