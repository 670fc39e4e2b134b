"""Agreement of a student with its teacher: values worked out apart, and what a run writes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.agreement import Agreement, evenly, read_agreement
from distill.losses import Activations

REG_MAX = 16


def activations(seed: int, channels: int = 6) -> Activations:
    draw = torch.Generator().manual_seed(seed)
    return Activations(
        torch.randn(2, 4 * REG_MAX, 20, generator=draw),
        torch.randn(2, 3, 20, generator=draw) * 2,
        (torch.randn(2, channels, 4, 4, generator=draw), torch.randn(2, channels, 2, 2, generator=draw)),
    )


def measured(student: Activations, teacher: Activations) -> dict[str, object]:
    sums = Agreement()
    sums.add(student, teacher)
    return sums.result()


def test_a_copy_of_the_teacher_agrees_in_everything() -> None:
    teacher = activations(0)
    result = measured(teacher, teacher)
    assert result["sure_anchors"] > 0
    assert result["class_kl"] == pytest.approx(0, abs=1e-6)
    assert (result["same_class"], result["box_iou"]) == (1, 1)
    assert result["feature_cka"] == pytest.approx([1, 1], abs=1e-6)
    assert result["positions"] == [32, 8]


def test_each_measure_equals_its_formula_worked_out_apart() -> None:
    student, teacher = activations(1, channels=5), activations(2, channels=7)
    result = measured(student, teacher)
    p, q = (1 / (1 + np.exp(-a.scores.numpy().astype(np.float64))) for a in (teacher, student))
    sure = p.max(axis=1) >= 0.25
    kl = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(axis=1)[sure].mean()
    assert result["sure_anchors"] == sure.sum()
    assert result["class_kl"] == pytest.approx(kl, rel=1e-5)
    assert result["same_class"] == pytest.approx((p.argmax(1) == q.argmax(1))[sure].mean(), abs=1e-6)
    ious = []
    for image, anchor in zip(*np.nonzero(sure), strict=True):
        boxes = []
        for side in (student, teacher):
            logits = side.boxes[image, :, anchor].numpy().astype(np.float64).reshape(4, REG_MAX)
            chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            left, top, right, bottom = (chances * np.arange(REG_MAX)).sum(axis=1)
            boxes.append((-left, -top, right, bottom))
        (a, b, c, d), (e, f, g, h) = boxes
        overlap = (min(c, g) - max(a, e)) * (min(d, h) - max(b, f))
        ious.append(overlap / ((c - a) * (d - b) + (g - e) * (h - f) - overlap))
    assert result["box_iou"] == pytest.approx(np.mean(ious), abs=1e-5)
    for level in range(2):
        x, y = (s.feats[level].numpy().transpose(0, 2, 3, 1).astype(np.float64) for s in (student, teacher))
        x, y = (f.reshape(-1, f.shape[-1]) - f.reshape(-1, f.shape[-1]).mean(axis=0) for f in (x, y))
        # In its kernel form here: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)).
        k, m = x @ x.T, y @ y.T
        expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
        assert result["feature_cka"][level] == pytest.approx(expected, abs=1e-6)


def test_batches_add_up_to_the_whole() -> None:
    student, teacher = activations(3), activations(4)
    sums = Agreement()
    for image in range(2):
        one = slice(image, image + 1)
        sums.add(
            *(Activations(a.boxes[one], a.scores[one], tuple(f[one] for f in a.feats)) for a in (student, teacher))
        )
    whole = measured(student, teacher)
    assert sums.result()["class_kl"] == pytest.approx(whole["class_kl"], abs=2e-6)
    assert sums.result()["feature_cka"] == pytest.approx(whole["feature_cka"], abs=2e-6)


def test_rotated_and_scaled_features_are_the_same_features() -> None:
    teacher = activations(5)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    turned = tuple(3 * torch.einsum("ij,bjhw->bihw", turn, f) for f in teacher.feats)
    result = measured(Activations(teacher.boxes, teacher.scores, turned), teacher)
    assert result["feature_cka"] == pytest.approx([1, 1], abs=1e-5)


def test_a_teacher_sure_of_nothing_leaves_the_means_open() -> None:
    teacher = activations(6)
    unsure = Activations(teacher.boxes, teacher.scores - 20, teacher.feats)
    result = measured(teacher, unsure)
    assert (result["sure_anchors"], result["class_kl"], result["box_iou"]) == (0, None, None)


def test_images_are_taken_evenly() -> None:
    paths = [Path(str(i)) for i in range(10)]
    assert evenly(paths, 4) == [Path("0"), Path("3"), Path("6"), Path("9")]
    assert evenly(paths, 20) == paths


def test_a_finished_distillation_says_how_far_it_agrees(finished_run: Path, toy_teacher: Path) -> None:
    content = json.loads((finished_run / "agreement.json").read_text())
    (teacher,) = content["teachers"]
    student = json.loads((finished_run / "student" / "student.json").read_text())
    assert content["student"]["sha256"] == student["student"]["sha256"]
    assert teacher["sha256"] == student["teacher"]["sha256"]
    assert (teacher["images"], teacher["of_images"], teacher["imgsz"]) == (4, 4, 64)
    assert len(teacher["feature_cka"]) == 3
    assert all(0 <= v <= 1 for v in teacher["feature_cka"])
    assert teacher["positions"] == [4 * 64, 4 * 16, 4 * 4]


def test_a_damaged_agreement_is_measured_again_not_shown(tmp_path: Path) -> None:
    (tmp_path / "agreement.json").write_text("{")
    assert read_agreement(tmp_path / "agreement.json") is None
    assert read_agreement(tmp_path / "absent.json") is None
