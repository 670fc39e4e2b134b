"""The page of a run: what it shows, that it stands alone, and that a browser has nothing to complain of."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill import page, yolo
from distill.page_curves import Curve, draw_curves
from distill.page_samples import Found, match, read_truth

Browser = Any  # of tests/conftest.py


@pytest.fixture(scope="module")
def shown(finished_run: Path, arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished distillation and a plain run of one epoch, and the page of the first against the second."""
    root = tmp_path_factory.mktemp("page")
    run = Path(shutil.copytree(finished_run, root / "distilled"))
    assert yolo.main(arguments(root / "plain", "--epochs", "1", plain=True)) == 0
    assert page.main([str(run), "--against", str(root / "plain"), "--images", "2"]) == 0
    return run


def test_the_page_shows_every_epoch_loss_and_measure(shown: Path) -> None:
    text = (shown / "page.html").read_text()
    figures = [json.loads(html.unescape(found)) for found in re.findall(r'data-curves="([^"]*)"', text)]
    curves = {curve["name"]: curve["values"] for figure in figures for curve in figure["curves"]}
    assert len(curves["mAP50-95"]) == 4
    assert len(curves["mAP50-95, plain"]) == 1
    for name in ("response", "ld", "feature"):
        assert all(value > 0 for value in curves[name])
    measured = json.loads((shown / "agreement.json").read_text())["teachers"][0]
    assert f"{measured['feature_cka'][0]:.4f}" in text
    student = json.loads((shown / "student" / "student.json").read_text())
    assert student["student"]["sha256"] in text
    assert student["tools"]["ultralytics"] in text
    assert "plain differs in more than its teaching (epochs)" in text


def test_images_show_truth_teacher_student_and_the_other_run(shown: Path) -> None:
    text = (shown / "page.html").read_text()
    assert re.findall(r"<figcaption><b>([^<]*)</b>", text) == ["truth", "teacher", "student", "plain"] * 2
    assert text.count('src="data:image/jpeg;base64,') == 8
    assert not re.search(r"(src|href)=.https?:", text)
    assert len(text) < 1_000_000
    other = json.loads((shown / "agreement-against.json").read_text())
    assert other["student"]["sha256"] != json.loads((shown / "agreement.json").read_text())["student"]["sha256"]


def test_a_run_in_training_is_shown_without_running_a_model(
    interrupted_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert page.main([str(interrupted_run), "--images", "0"]) == 0
    assert capsys.readouterr().out == f"{interrupted_run / 'page.html'}\n"
    text = (interrupted_run / "page.html").read_text()
    assert "epoch 2 of 4: not finished" in text
    assert "<img" not in text


def test_what_cannot_be_shown_is_refused_in_one_line(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (run / "train" / "results.csv").unlink()
    for folder, words in ((tmp_path, "recipe.json"), (run, "no complete epoch")):
        assert page.main([str(folder)]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")
        assert words in line


def test_detections_are_counted_once_and_only_with_their_class() -> None:
    truth = Found(np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32), np.array([0, 1]))
    boxes = np.array([[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]], np.float32)
    found = Found(boxes, np.array([0, 0, 0, 1]), np.array([0.9, 0.8, 0.7, 0.6], np.float32))
    assert match(found, truth) == (1, 3, 1)
    assert match(truth, truth) == (2, 0, 0)
    assert match(Found(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)), truth) == (0, 0, 2)


def test_labels_are_read_as_boxes_polygons_and_keypoints(toy_copy: Path) -> None:
    image = toy_copy.parent / "images" / "val" / "0.png"
    label = toy_copy.parent / "labels" / "val" / "0.txt"
    label.write_text("1 0.5 0.5 0.25 0.5\n0 0.25 0.25 0.5 0.25 0.5 0.75\n")
    truth = read_truth(image)
    assert truth.boxes.tolist() == [[24, 16, 40, 48], [16, 16, 32, 48]]
    assert truth.class_ids.tolist() == [1, 0]
    label.write_text("0 0.5 0.5 0.25 0.5 0.5 0.5 2 0 0 0\n")
    assert [points.tolist() for points in read_truth(image, (2, 3)).outlines] == [[[32, 32]]]


def test_a_curve_breaks_where_there_is_no_value() -> None:
    drawn = draw_curves("loss", [Curve("a", [2.0, None, 1.0, 0.0], "c0")])
    path = re.search(r'class="line c0" d="([^"]*)"', drawn)
    assert path is not None
    assert re.sub(r"[\d. ]+", "", path[1]) == "MML"


def test_an_epoch_that_was_not_validated_has_no_accuracy_and_an_accuracy_of_0_is_one(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("epoch,train/box_loss,metrics/mAP50-95(B),val/box_loss\n1,3.0,0,0\n2,2.0,0,4.5\n3,1.5,0.25,4\n")
    rows = page._read_results(path)
    assert [row["metrics/mAP50-95(B)"] for row in rows] == [None, 0.0, 0.25]
    assert [row["val/box_loss"] for row in rows] == [None, 4.5, 4.0]
    assert [row["train/box_loss"] for row in rows] == [3.0, 2.0, 1.5]


def test_a_browser_opens_it_without_a_complaint_by_mouse_key_phone_and_print(browser: Browser, shown: Path) -> None:
    browser.open(shown / "page.html")
    assert browser.evaluate("document.querySelectorAll('svg[data-curves]').length") == 7
    assert browser.evaluate("Array.from(document.images).length") == 8
    tip = "document.getElementById('tip')"
    assert browser.evaluate(f"{tip}.hidden")
    x, y = browser.evaluate(
        "(b => [b.left + b.width / 2, b.top + b.height / 2])"
        "(document.querySelector('svg[data-curves]').getBoundingClientRect())"
    )
    browser.mouse("mouseMoved", x, y)
    assert browser.evaluate(f"{tip}.textContent").startswith("epoch ")
    browser.mouse("mouseMoved", 1, 1)
    assert browser.evaluate(f"{tip}.hidden")
    browser.evaluate("document.querySelector('svg[data-curves]').focus()")
    browser.key("Home", 36)
    browser.key("ArrowRight", 39)
    assert browser.evaluate(f"{tip}.textContent").startswith("epoch 2\nmAP50-95 ")
    browser.key("Escape", 27)
    assert browser.evaluate(f"{tip}.hidden")
    if folder := os.environ.get("EDGE_DISTILL_PICTURES"):
        (Path(folder) / "run-page.png").write_bytes(browser.screenshot())
    browser.open(shown / "page.html", width=390, height=844, phone=True)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    browser.call("Emulation.setEmulatedMedia", media="")
    assert browser.complaints == []
