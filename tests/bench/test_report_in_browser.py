"""The report in headless Chromium: sorting, hover, the keyboard, a phone, print. Skips where there is no Chromium."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import report
from bench.accuracy import ImageDetections, ImageTruth
from bench.detections_file import write_detections
from bench.records import Accuracy, Latency, Result

Browser = Any  # of tests/conftest.py
CLASSES = ("RBC", "WBC", "Platelets")
# Name on the device, engine, precision, median of inference in s, mAP50-95, whether it is emulated.
RUNS = (
    ("pi5", "onnx", "fp32", 0.060, 0.52, False),
    ("pi5", "onnx", "int8", 0.031, 0.51, False),
    ("pi5", "tflite", "int8", 0.0099, 0.505, False),
    ("pi5", "ncnn", "fp32", 0.045, 0.52, False),
    ("pi4-vm", "onnx", "int8", 1.9, 0.51, True),
)


def _result(device: str, engine: str, precision: str, inference_s: float, score: float, emulated: bool) -> Result:
    draw = np.random.default_rng(int(inference_s * 1e4))
    stages = [(base * draw.gamma(40, 1 / 40, 200)).tolist() for base in (0.0011, inference_s, 0.0019)]
    return Result(
        bundle={
            "name": f"cells-distilled-{engine}-{precision}",
            "sha256": f"{engine}{precision}",
            "engine": engine,
            "precision": precision,
            "imgsz": [320, 320],
            "size_bytes": 12_300_000 if precision == "fp32" else 3_300_000,
            "student": {"name": "cells", "sha256": "a" * 64, "teacher": {"file": "yolov8s.pt"}},
        },
        device=device,
        machine={
            "model": "Raspberry Pi 5 Model B Rev 1.0",
            "cores": 4,
            "emulated": emulated,
            "memory_bytes": 8 * 2**30,
        },
        protocol={"threads": 4, "command": f"python bench/run.py --device {device}"},
        load_s=0.2,
        first_inference_s=inference_s,
        latency=Latency(*map(tuple, stages)),
        peak_rss_bytes=75_000_000 + int(1e8 * inference_s),
        created="2026-11-21T05:06:07+00:00",
        accuracy=Accuracy(
            score, score + 0.2, dict(zip(CLASSES, (0.7, 0.5, 0.3), strict=True)), 4, "cells/val", "c" * 64
        ),
        executed={"library": engine},
        tools={"python": "3.11.2"},
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report over two devices with drawn images."""
    root = tmp_path_factory.mktemp("report")
    draw = np.random.default_rng(3)
    images = []
    for index in range(4):
        images.append(root / f"{index} cells.png")
        Image.fromarray(draw.integers(90, 255, (480, 640, 3)).astype(np.uint8)).save(images[-1])
    truths = [ImageTruth(np.array([[80, 60, 300, 320], [360, 120, 600, 400.0]]), np.array([0, 1]))] * 4
    for device, engine, precision, *figures in RUNS:
        folder = root / "run" / f"{engine}-{precision}@{device}"
        folder.mkdir(parents=True)
        result = _result(device, engine, precision, *figures)  # type: ignore[arg-type]
        (folder / "result.json").write_text(result.to_json(), encoding="utf-8")
        boxes = [truth.boxes_xyxy + draw.normal(0, 9, (2, 4)) for truth in truths]
        found = [ImageDetections(box, draw.uniform(0.3, 1, 2), np.array([0, 1])) for box in boxes]
        write_detections(folder / "detections.npz", images, found, truths, CLASSES)
    out = root / "report.html"
    assert report.main([str(root / "run"), "--out", str(out)]) == 0
    return out


def _column(browser: Browser, key: str) -> list[str]:
    script = f"Array.from(document.querySelectorAll('.figures tbody td[data-key={key}]'), c => c.dataset.value)"
    return list(browser.evaluate(script))


def _place(browser: Browser, selector: str) -> tuple[float, float]:
    """The middle of the first element that is shown, once it was scrolled to."""
    script = f"""(() => {{
      const shown = Array.from(document.querySelectorAll({json.dumps(selector)})).find(e => e.getClientRects().length);
      shown.scrollIntoView({{block: 'center', inline: 'center'}});
      const box = shown.getBoundingClientRect();
      return [box.left + box.width / 2, box.top + box.height / 2];
    }})()"""
    x, y = browser.evaluate(script)
    return x, y


def _keep(name: str, picture: bytes) -> None:
    """Leave a picture to be looked at, where $EDGE_DISTILL_PICTURES names a folder."""
    if folder := os.environ.get("EDGE_DISTILL_PICTURES"):
        (Path(folder) / name).write_bytes(picture)


def test_the_page_opens_without_a_complaint_and_fetches_nothing(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.evaluate("document.querySelectorAll('.figures tbody tr').length") == len(RUNS)
    assert (
        browser.evaluate("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length")
        == 0
    )
    assert browser.evaluate("Array.from(document.images).every(i => i.complete && i.naturalWidth > 0)")
    assert browser.evaluate("document.images.length") >= len(RUNS)
    assert browser.complaints == []
    assert page.stat().st_size < 3_000_000
    _keep("desktop.png", browser.screenshot())


def test_a_click_on_a_heading_sorts_by_number_and_a_second_one_turns_it_round(browser: Browser, page: Path) -> None:
    browser.open(page)
    x, y = _place(browser, "th:has(button[title^=Median]) button")
    for expected in ("ascending", "descending"):
        for kind in ("mousePressed", "mouseReleased"):
            browser.mouse(kind, x, y)
        values = [float(value) for value in _column(browser, "p50_ms")]
        assert values == sorted(values, reverse=expected == "descending")
        assert browser.evaluate("document.querySelector('.figures th[aria-sort]').ariaSort") == expected
    # 9.9 ms lies before 31 and 60 only for a number
    assert values.index(min(values)) == len(RUNS) - 1
    assert browser.complaints == []


def test_the_keyboard_reaches_a_heading_shows_where_it_is_and_sorts(browser: Browser, page: Path) -> None:
    browser.open(page)
    focused = []
    for _ in range(60):
        browser.key("Tab", 9)
        focused.append(browser.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText"))
        if focused[-1] == "FPS":
            break
    assert focused[0] == "Figures"  # what is wider than the window scrolls by arrow keys
    assert focused[-1] == "FPS"
    outline = browser.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    browser.key("Enter", 13, "\r")
    values = [float(value) for value in _column(browser, "fps")]
    assert values == sorted(values)
    assert browser.evaluate("document.activeElement.innerText") == "FPS"  # and the focus stays


def test_hovering_a_point_and_focusing_it_shows_its_figures(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.evaluate("document.getElementById('tip').hidden")
    x, y = _place(browser, ".plot .point .target")
    browser.mouse("mouseMoved", x, y)
    shown = browser.evaluate("document.getElementById('tip').textContent")
    assert "mAP50-95" in shown
    assert "p50" in shown
    box = browser.evaluate(
        "(b => [b.left, b.top, b.right, b.bottom])(document.getElementById('tip').getBoundingClientRect())"
    )
    assert box[0] >= 0
    assert box[1] >= 0
    assert box[2] <= 1280
    browser.mouse("mouseMoved", 1, 1)
    assert browser.evaluate("document.getElementById('tip').hidden")
    browser.evaluate(
        "Array.from(document.querySelectorAll('.plot .point')).find(p => p.getClientRects().length).focus()"
    )
    assert not browser.evaluate("document.getElementById('tip').hidden")
    browser.key("Escape", 27)
    assert browser.evaluate("document.getElementById('tip').hidden")
    assert browser.complaints == []


def test_an_image_grows_at_a_key_and_shrinks_again(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate("document.querySelector('.tile button').focus()")
    width = browser.evaluate("document.querySelector('.tile img').getBoundingClientRect().width")
    browser.key("Enter", 13, "\r")
    assert browser.evaluate("document.activeElement.ariaPressed") == "true"
    assert browser.evaluate("document.querySelector('.tile img').getBoundingClientRect().width") > 1.2 * width
    browser.key("Enter", 13, "\r")
    assert browser.evaluate("document.querySelector('.tile img').getBoundingClientRect().width") == width


def test_on_a_phone_only_tables_scroll_sideways(browser: Browser, page: Path) -> None:
    browser.open(page, width=390, height=844, phone=True)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    assert browser.evaluate("window.innerWidth") == 390  # not zoomed out to fit something wide
    assert browser.evaluate("document.querySelector('.scroll').scrollWidth") > 390
    assert browser.evaluate("getComputedStyle(document.querySelector('.plot-wide')).display") == "none"
    small = browser.evaluate(
        "Array.from(document.querySelectorAll('p, td, dd, li, figcaption')).filter(e => e.getClientRects().length"
        " && parseFloat(getComputedStyle(e).fontSize) < 11).length"
    )
    assert small == 0
    _keep("phone.png", browser.screenshot())


def test_print_leaves_nothing_cut_off(browser: Browser, page: Path) -> None:
    browser.open(page, width=718)  # A4 between its margins at 96 dots an inch
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        beyond = (
            "Array.from(document.querySelectorAll('body *')).filter(e => e.getBoundingClientRect().right > 719)"
            ".map(e => e.tagName + '.' + e.getAttribute('class'))"
        )
        assert browser.evaluate(beyond) == []
        overflowing = (
            "Array.from(document.querySelectorAll('.scroll')).filter(e => e.scrollWidth > e.clientWidth + 1).length"
        )
        assert browser.evaluate(overflowing) == 0
        assert browser.evaluate("getComputedStyle(document.querySelector('details')).display") == "none"
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
    printed = base64.b64decode(browser.call("Page.printToPDF", printBackground=True)["data"])
    assert printed.startswith(b"%PDF")
    _keep("print.pdf", printed)
