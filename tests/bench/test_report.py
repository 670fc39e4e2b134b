"""The report: its figures are those of the results, it is self-contained, and bad input gets one line."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import report
from bench.accuracy import ImageDetections, ImageTruth
from bench.detections_file import write_detections
from bench.records import Accuracy, Latency, Result, TopAccuracy
from bench.samples import Outcome, outcome
from deploy.bundle import ENGINES, PRECISIONS

HOSTILE = "</script><script>alert('1')</script>\"&<img src=x onerror=alert(2)>"
CLASSES = ("RBC", "WBC")


def _result(**changes: Any) -> Result:
    draw = np.random.default_rng(changes.pop("seed", 0))
    count = changes.pop("count", 150)
    stages = [
        tuple((base * draw.uniform(1, 1.2, count)).tolist()) for base in (0.0007, changes.pop("base", 0.008), 0.001)
    ]
    bundle = {
        "name": "cells-onnx-int8",
        "sha256": "b" * 64,
        "engine": "onnx",
        "precision": "int8",
        "imgsz": [320, 320],
        "size_bytes": 3_301_234,
        "student": {"name": "cells", "sha256": "a" * 64, "teacher": {"file": "yolov8s.pt"}},
    }
    fields: dict[str, Any] = {
        "device": "local",
        "machine": {"model": "A board", "cores": 4, "emulated": False, "before": {"load_average": [0.1, 0.1, 0.1]}},
        "protocol": {"threads": 2, "command": "python bench/run.py --data 'my data.yaml'"},
        "load_s": 0.123,
        "first_inference_s": 0.031,
        "latency": Latency(*stages),
        "peak_rss_bytes": 75_432_100,
        "created": "2026-11-21T05:06:07+00:00",
        "accuracy": Accuracy(0.40123456, 0.6087, {"RBC": 0.5, "WBC": 0.302}, 4, "cells/val", "c" * 64),
        "executed": {"library": "onnxruntime", "version": "1.31.1"},
        "tools": {"python": "3.11.7"},
    }
    return Result(bundle=bundle | changes.pop("bundle", {}), **(fields | changes))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes one result into runs/bench/cells below the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(name: str = "", **changes: Any) -> Path:
        result = _result(**changes)
        folder = tmp_path / "runs/bench/cells" / (name or f"{result.bundle['name']}@{result.device}")
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(result.to_json(), encoding="utf-8")
        return folder

    return write


class _Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the cells of the figures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.cells: list[dict[str, tuple[str, str]]] = []
        self._cell: tuple[str, str] | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag == "td" and "data-key" in found:
            if found["data-key"] == "device":
                self.cells.append({})
            self._cell = (found["data-key"], found["data-value"])

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            key, value = self._cell
            self.cells[-1][key] = (value, data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._cell = None

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _render(*arguments: str) -> _Page:
    out = Path("page.html")
    assert report.main([*arguments, "--out", str(out)]) == 0
    return _Page(out)


def test_every_figure_on_the_page_is_that_of_result_json(run: Callable[..., Path]) -> None:
    folder = run()
    written = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    summary, accuracy = written["summary"], written["accuracy"]
    expected = {
        "map50_95": (100 * accuracy["map50_95"], "40.1"),
        "map50": (100 * accuracy["map50"], "60.9"),
        "p50_ms": (1e3 * summary["total_s"]["p50"], f"{1e3 * summary['total_s']['p50']:.1f}"),
        "p90_ms": (1e3 * summary["total_s"]["p90"], f"{1e3 * summary['total_s']['p90']:.1f}"),
        "p99_ms": (1e3 * summary["total_s"]["p99"], f"{1e3 * summary['total_s']['p99']:.1f}"),
        "inference_p50_ms": (1e3 * summary["inference_s"]["p50"], f"{1e3 * summary['inference_s']['p50']:.2f}"),
        "fps": (summary["fps"], f"{summary['fps']:.1f}"),
        "peak_rss_mb": (75.4321, "75.4"),
        "size_mb": (3.301234, "3.30"),
        "load_ms": (123.0, "123"),
    }
    (cells,) = _render().cells
    for key, (value, text) in expected.items():
        assert float(cells[key][0]) == pytest.approx(value, rel=1e-12), key
        assert cells[key][1] == text
    assert [cells[key][1] for key in ("device", "bundle", "engine", "precision", "pixels", "threads")] == [
        "local", "cells-onnx-int8", "onnx", "int8", "320", "2"
    ]  # fmt: skip


def test_processor_time_energy_and_throughput_are_shown_where_a_result_holds_them(run: Callable[..., Path]) -> None:
    measured = {
        "cpu": {"user_s": 1.5, "system_s": 0.3, "wall_s": 1.4},
        "energy": {"joules": 7.5, "source": ["rapl"], "meters": {"rapl": 7.5}},
        "throughput": {"fps": 250.0, "streams": 2, "latency_s": [[0.008], [0.008]]},
    }
    run()
    without = _render()
    Path("page.html").unlink()
    assert not {"cpu_ms", "energy_mj", "streams_fps"} & set(without.cells[0])
    assert "energy mJ" not in without.text
    run(bundle={"name": "cells-onnx-fp32", "precision": "fp32"}, **measured)
    page = _render()
    shown = [[cells[key][1] for key in ("streams_fps", "cpu_ms", "energy_mj")] for cells in page.cells]
    assert shown == [["250", "12.0", "50.0"], ["-", "-", "-"]]  # of 150 images, in thousandths
    assert all(heading in page.text for heading in ("streams FPS", "CPU ms", "energy mJ"))


def test_percentiles_on_the_page_are_those_of_the_raw_samples(run: Callable[..., Path]) -> None:
    total_ms = [1e3 * sum(stages) for stages in zip(*vars(_result().latency).values(), strict=True)]
    run()
    (cells,) = _render().cells
    ordered = sorted(total_ms)
    assert float(cells["p50_ms"][0]) == pytest.approx((ordered[74] + ordered[75]) / 2)
    assert float(cells["fps"][0]) == pytest.approx(150 / (sum(total_ms) / 1e3))


def test_the_printed_table_and_the_json_hold_the_figures_of_the_page(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    run(bundle={"name": "cells-onnx-fp32", "precision": "fp32", "sha256": "d" * 64}, accuracy=None, seed=1)
    page = _render()
    table = capsys.readouterr()
    lines = table.out.splitlines()
    assert len(lines) == 3
    for line, cells in zip(lines[1:], page.cells, strict=True):
        assert line.split() == [text for _, text in cells.values()]
    assert [cells["precision"][1] for cells in page.cells] == ["fp32", "int8"]
    assert page.cells[0]["map50_95"] == ("", "-")
    assert "next: python -m deploy.detect --bundle" in table.err
    assert report.main(["--json", "--out", "other.html"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == "other.html"
    for figures, cells in zip(printed["results"], page.cells, strict=True):
        for key, (value, _) in cells.items():
            assert ("" if figures[key] is None else str(figures[key])) == value


def test_rows_are_in_the_order_of_the_engines_and_precisions_that_bundles_know(run: Callable[..., Path]) -> None:
    expected = [(engine, precision) for engine in ENGINES for precision in PRECISIONS]
    for engine, precision in reversed(expected):
        run(bundle={"name": f"cells-{engine}-{precision}", "engine": engine, "precision": precision})
    assert [(cells["engine"][1], cells["precision"][1]) for cells in _render().cells] == expected


def test_the_page_needs_nothing_from_outside(run: Callable[..., Path], tmp_path: Path) -> None:
    folder = run()
    _with_detections(folder, tmp_path)
    page = _render()
    assert page.named("link") == []
    assert all("src" not in script for script in page.named("script"))
    assert len(page.named("img")) > 0
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.named("img"))
    text = Path("page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|file:", text)
    assert "default-src 'none'" in page.named("meta")[1]["content"]
    assert len(text) < 500_000


def test_names_full_of_markup_are_shown_as_text(run: Callable[..., Path], tmp_path: Path) -> None:
    folder = run(
        name="hostile",
        device=HOSTILE,
        bundle={"name": HOSTILE, "engine": HOSTILE, "student": {"name": HOSTILE, "teacher": {"name": HOSTILE}}},
        accuracy=Accuracy(0.5, 0.5, {HOSTILE: 0.5}, 4, HOSTILE, "c"),
        machine={HOSTILE: {HOSTILE: [HOSTILE]}, "model": HOSTILE},
        protocol={"command": ["python", HOSTILE], "notes": [HOSTILE], HOSTILE: HOSTILE},
        executed={"precision_hint_asked": HOSTILE, "precision_hint_executed": "f32"},
        tools={HOSTILE: HOSTILE},
        created=HOSTILE,
    )
    run(device="other")
    _with_detections(folder, tmp_path, names=(HOSTILE, HOSTILE), file_name=HOSTILE.replace("/", "_") + ".png")
    page = _render()
    assert len(page.named("script")) == 1
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.named("img"))
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]
    assert {cells["bundle"][1] for cells in page.cells} == {HOSTILE, "cells-onnx-int8"}
    assert page.text.count(HOSTILE) > 15
    assert {tag for tag, _ in page.tags if tag in ("iframe", "object", "base", "form", "embed")} == set()


def _with_detections(
    folder: Path, images: Path, names: tuple[str, ...] = CLASSES, file_name: str = "1 cell.png", shift: float = 0.0
) -> None:
    """Four images: one found, one missed, one without objects, one with too much found."""
    paths = [images / name for name in ("0 found.png", file_name, "2 empty.png", "3 too much.png")]
    for index, path in enumerate(paths):
        if not path.exists():
            Image.new("RGB", (200, 150), (40 * index, 90, 120)).save(path)
    box, none = [20.0, 30.0, 120.0, 130.0], np.zeros((0, 4))
    found = np.array([[side + shift for side in box]])
    truths = [ImageTruth(np.array([box]), np.array([0])), ImageTruth(np.array([box]), np.array([1]))]
    truths += [ImageTruth(none, np.zeros(0, int)), ImageTruth(np.array([box]), np.array([0]))]
    detections = [ImageDetections(found, np.array([0.9]), np.array([0]))]
    detections += [ImageDetections(found, np.array([0.2]), np.array([1]))]  # below the score that is shown
    detections += [ImageDetections(none, np.zeros(0), np.zeros(0, int))]
    many = np.array([found[0], found[0], [0, 0, 10, 10]])
    detections += [ImageDetections(many, np.array([0.9, 0.8, 0.7]), np.array([0, 0, 1]))]
    write_detections(folder / "detections.npz", paths, detections, truths, names)


def test_sample_images_are_the_same_for_every_bundle_with_the_worst_first(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    _with_detections(run(), tmp_path)
    other = run(bundle={"name": "cells-onnx-fp32", "precision": "fp32", "sha256": "d" * 64})
    _with_detections(other, tmp_path, shift=60.0)  # finds nothing
    page = _render()
    described = [image["alt"] for image in page.named("img")]
    assert described[:3] == [
        "1 cell.png, truth: 1 object",
        "1 cell.png, onnx fp32: 0 right, 0 wrong, 1 missed",
        "1 cell.png, onnx int8: 0 right, 0 wrong, 1 missed",
    ]
    # Each of the four images once, each with the truth and both bundles.
    assert len(described) == 12
    assert [text.partition(",")[0] for text in described[::3]] == [
        "1 cell.png", "0 found.png", "3 too much.png", "2 empty.png"
    ]  # fmt: skip
    assert "3 too much.png, onnx int8: 1 right, 2 wrong, 0 missed" in described
    assert "0 found.png, onnx fp32: 0 right, 1 wrong, 1 missed" in described


def test_an_outcome_counts_what_is_right_wrong_and_missed() -> None:
    truth = ImageTruth(np.array([[0, 0, 10, 10], [50, 50, 60, 60.0]]), np.array([0, 1]))
    boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [50, 50, 60, 60], [50, 50, 60, 60.0]])
    detections = ImageDetections(boxes, np.array([0.3, 0.9, 0.9, 0.2]), np.array([0, 0, 0, 1]))
    assert outcome(detections, truth) == Outcome(right=1, wrong=2, missed=1)
    assert Outcome(1, 2, 1).f1 == 2 / 5
    assert Outcome(0, 0, 0).f1 == 1.0


def test_images_that_are_gone_or_broken_are_left_out_and_said_so(run: Callable[..., Path], tmp_path: Path) -> None:
    _with_detections(run(), tmp_path)
    (tmp_path / "1 cell.png").unlink()
    (tmp_path / "3 too much.png").write_bytes((tmp_path / "3 too much.png").read_bytes()[:60])
    page = _render()
    assert {image["alt"].partition(",")[0] for image in page.named("img")} == {"0 found.png", "2 empty.png"}
    assert "2 images chosen as samples can no longer be read" in page.text


def test_detections_without_truth_are_drawn_without_a_verdict(run: Callable[..., Path], tmp_path: Path) -> None:
    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    found = ImageDetections(np.array([[5, 5, 30, 30.0]]), np.array([0.9]), np.array([7]))
    write_detections(run() / "detections.npz", [tmp_path / "a.png"], [found])
    assert [image["alt"] for image in _render().named("img")] == ["a.png, onnx int8: 1 detection"]


def test_results_of_several_devices_are_all_shown_and_an_emulated_one_is_marked(run: Callable[..., Path]) -> None:
    run(device="pi5", base=0.1)
    emulated = {"model": "Raspberry Pi 4", "emulated": True}
    run(device="pi4-vm", base=0.001, machine=emulated)  # faster than any: must not be called the fastest
    page = _render()
    assert {cells["device"][1] for cells in page.cells} == {"pi5", "pi4-vm (emulated)"}
    assert "pi4-vm (emulated): emulated, not a Pi's time" in page.text
    assert re.search(r"fastest\d+ ms p50onnx int8 @ pi5", page.text)
    assert "Raspberry Pi 4" in page.text


def test_bundles_of_two_tasks_are_not_held_against_each_other(run: Callable[..., Path]) -> None:
    for precision, base in (("fp32", 0.02), ("int8", 0.008)):
        run(base=base, bundle={"name": f"cells-onnx-{precision}", "precision": precision, "task": "segment"})
    top = TopAccuracy(0.57, 0.95, {"cat": 0.5, "dog": 0.64}, 1000, "cifar10/test", "d" * 64)
    for precision, base in (("fp32", 0.002), ("int8", 0.001)):
        named = {"name": f"c10-onnx-{precision}", "precision": precision, "task": "classify"}
        run(base=base, bundle=named, accuracy=top, executed={"library": "onnxruntime", "model_cache": "loaded"})
    page = _render()
    assert "data setscells/val, 4 images; cifar10/test, 1000 images" in page.text
    assert re.search(r"fastest segmenter[\d.]+ ms p50cells-onnx-int8", page.text)
    assert re.search(r"fastest classifier[\d.]+ ms p50c10-onnx-int8", page.text)
    best = {
        attributes["data-value"]
        for attributes in page.named("td")
        if attributes.get("data-key") == "fps" and "best" in attributes["class"]
    }
    fps = {cells["bundle"][1]: cells["fps"][0] for cells in page.cells}
    assert best == {fps["cells-onnx-int8"], fps["c10-onnx-int8"]}
    assert "cells-onnx-fp32, cells-onnx-int8: scored by its boxes; its masks are not scored." in page.text
    assert "Accuracy (mAP50-95) against latency" in page.text
    assert "Accuracy (top-1) against latency" in page.text
    assert "c10-onnx-fp32, c10-onnx-int8: found the opened model in its cache" in page.text


def test_what_int8_costs_is_told_against_the_float_bundle_of_the_same_runtime(run: Callable[..., Path]) -> None:
    def scored(engine: str, precision: str, top1: float, images: str = "d") -> None:
        top = TopAccuracy(top1, 0.95, {}, 1000, "cifar10/test", images * 64)
        named = {"name": f"c10-{engine}-{precision}", "engine": engine, "precision": precision, "task": "classify"}
        run(bundle=named, accuracy=top)

    scored("onnx", "fp32", 0.57)
    scored("onnx", "int8", 0.566)
    scored("tflite", "fp32", 0.57)
    scored("tflite", "int8", 0.572)
    scored("openvino", "fp32", 0.57, images="e")  # scored on other images: no measure for the int8 one
    scored("openvino", "int8", 0.5)
    drops = {cells["bundle"][1]: cells["drop_points"][1] for cells in _render().cells}
    assert drops == {
        "c10-onnx-fp32": "-", "c10-onnx-int8": "0.40", "c10-tflite-fp32": "-", "c10-tflite-int8": "-0.20",
        "c10-openvino-fp32": "-", "c10-openvino-int8": "-",
    }  # fmt: skip


def test_one_bundle_of_each_task_is_the_best_of_nothing(run: Callable[..., Path]) -> None:
    run()
    top = TopAccuracy(0.57, 0.95, {}, 1000, "cifar10/test", "d" * 64)
    run(bundle={"name": "c10", "task": "classify"}, accuracy=top)
    assert "fastest" not in _render().text


def test_what_a_reader_must_know_is_noted(run: Callable[..., Path]) -> None:
    throttled = {"raw": "0x50005", "now": ["undervoltage"], "occurred": ["undervoltage", "throttled"]}
    machine = {
        "cores": 4,
        "before": {"load_average": [3.5, 1, 1], "throttled": None},
        "after": {"throttled": throttled},
    }
    slow = _result(count=20).latency
    samples = (*slow.inference_s[:-1], 0.2)
    run(
        machine=machine,
        latency=Latency(slow.preprocess_s, samples, slow.postprocess_s),
        executed={"precision_hint_asked": "f32", "precision_hint_executed": "bf16"},
        accuracy=None,
        protocol={"threads": 1, "notes": "the fan was off"},
    )
    other = Accuracy(0.3, 0.5, {"RBC": 0.3}, 9, "other/val", "e" * 64)
    run(bundle={"name": "cells-onnx-fp32", "precision": "fp32"}, accuracy=other, created="2026-11-21T06:00:00+00:00")
    run(bundle={"name": "cells-tflite-fp32", "engine": "tflite"}, created="2026-11-21T07:00:00+00:00")
    text = _render().text
    for note in (
        "local: busy with something else when the measurements began (load 3.5 on 4 cores)",
        "local: held back during the measurements: undervoltage.",
        "local: held back at some time since it was started: undervoltage, throttled.",
        "local: bundles ran with different thread counts (1, 2)",
        "onnx int8: fewer than 100 latency samples",
        "onnx int8: asked to run in f32, the engine executed bf16",
        "onnx int8: the fan was off",
        "onnx int8: not scored",
        "The bundles were scored on different images",
    ):
        assert note in text
    assert re.search(r"onnx int8: p99 is \d+\.\d times p50", text)


def test_a_quiet_run_has_no_notes(run: Callable[..., Path]) -> None:
    run()
    assert not [found for tag, found in _render().tags if tag == "ul" and found.get("class") == "notes"]


def test_the_newest_run_is_shown_by_default_and_unfinished_folders_are_not(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run(name="cells-onnx-int8@local")
    second = run(name="other@local", bundle={"name": "second"})
    old = tmp_path / "runs/bench/old/x@local"
    old.mkdir(parents=True)
    (old / "result.json").write_text(_result(bundle={"name": "stale"}).to_json(), encoding="utf-8")
    os.utime(old / "result.json", (1, 1))
    partial = newest.parent / ".half@local.partial-7"
    partial.mkdir()
    (partial / "result.json").write_text("{", encoding="utf-8")
    assert report.main([]) == 0
    printed = capsys.readouterr()
    assert [line.split()[1] for line in printed.out.splitlines()[1:]] == ["cells-onnx-int8", "second"]
    assert (second.parent / "report.html").is_file()
    assert report.main([]) == 0  # never over an existing one
    assert (second.parent / "report-2.html").is_file()
    assert report.main([str(old)]) == 0
    assert (old.parent / "report.html").is_file()
    assert not list(tmp_path.rglob("*.partial-*.html"))


@pytest.mark.parametrize("argument", ["runs/bench/cells", "{folder}", "{folder}/result.json"])
def test_a_run_a_result_folder_and_a_result_file_are_all_accepted(run: Callable[..., Path], argument: str) -> None:
    folder = run()
    given = argument.format(folder=folder)
    assert len(_render(given).cells) == 1
    assert report.main([given]) == 0
    assert (folder.parent / "report.html").is_file()


def _without(folder: Path, *path: str, value: Any = None) -> None:
    file = folder / "result.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    place = fields
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    file.write_text(json.dumps(fields), encoding="utf-8")


def _stages(samples: list[Any]) -> dict[str, list[Any]]:
    return dict.fromkeys(("preprocess_s", "inference_s", "postprocess_s"), samples)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no json": (lambda f: (f / "result.json").write_text("{oops"), "is not valid JSON"),
    "empty file": (lambda f: (f / "result.json").write_text(""), "is not valid JSON"),
    "binary": (lambda f: (f / "result.json").write_bytes(b"\xff\xfe\x00"), "is not UTF-8"),
    "another schema": (lambda f: _without(f, "schema", value=99), "has schema 99, this version reads 1, 2, 3"),
    "a list": (lambda f: (f / "result.json").write_text("[1]"), "has schema 'list'"),
    "a missing field": (lambda f: _without(f, "load_s"), "load_s"),
    "an unknown field": (lambda f: _without(f, "surprise", value=1), "surprise"),
    "no bundle name": (lambda f: _without(f, "bundle", "name"), "'name'"),
    "no samples": (lambda f: _without(f, "latency", value=_stages([])), "is incomplete"),
    "a stage short": (lambda f: _without(f, "latency", "inference_s", value=[0.1]), "is incomplete"),
    "words for samples": (lambda f: _without(f, "latency", value=_stages(["a"])), "is incomplete"),
    "negative samples": (lambda f: _without(f, "latency", value=_stages([-1.0])), "not positive"),
    "not-a-number samples": (
        lambda f: _without(f, "latency", value=_stages([math.nan])),
        "not positive",
    ),
    "accuracy of 40": (lambda f: _without(f, "accuracy", "map50_95", value=40.1), "not within 0..1"),
    "a class of no number": (lambda f: _without(f, "accuracy", "per_class", value={"a": "b"}), "is incomplete"),
    "a machine of words": (lambda f: _without(f, "machine", value="pi"), "machine is str"),
    "a state of no names": (lambda f: _without(f, "machine", "before", value=[1]), "machine.before is [1]"),
    "a load of words": (
        lambda f: _without(f, "machine", "before", value={"load_average": ["busy", "1"]}),
        "machine.before.load_average is 'busy'",
    ),
    "throttling of no list": (
        lambda f: _without(f, "machine", "after", value={"throttled": {"now": 5}}),
        "machine.after.throttled.now is 5",
    ),
    "a hash of no text": (lambda f: _without(f, "accuracy", "dataset_sha256", value=["c"]), "dataset_sha256 is ['c']"),
    "a load time of nothing": (lambda f: _without(f, "load_s", value=math.nan), "load_s is nan"),
    "memory below nothing": (lambda f: _without(f, "peak_rss_bytes", value=-5), "peak_rss_bytes is -5"),
    "memory without end": (lambda f: _without(f, "peak_rss_bytes", value=math.inf), "peak_rss_bytes is inf"),
    "threads without end": (lambda f: _without(f, "protocol", "threads", value=math.inf), "is incomplete"),
    "no detections archive": (lambda f: (f / "detections.npz").write_bytes(b"PK"), "is not a detections file"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_result_that_cannot_be_read_is_one_line_and_leaves_no_report(
    run: Callable[..., Path], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    breaks, message = BROKEN[kind]
    run(name="good@local")
    breaks(run())
    assert report.main([]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert "cells-onnx-int8@local" in printed.err  # which one
    assert not list(tmp_path.rglob("*.html"))


def test_nothing_to_report_and_an_existing_file_are_refused(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([]) == 1
    assert "no result.json below runs/bench: run python bench/run.py" in capsys.readouterr().err
    assert report.main(["nowhere"]) == 1
    assert "no result.json in or below nowhere" in capsys.readouterr().err
    run()
    Path("mine.html").write_text("keep", encoding="utf-8")
    assert report.main(["--out", "mine.html"]) == 1
    assert "mine.html already exists" in capsys.readouterr().err
    assert Path("mine.html").read_text(encoding="utf-8") == "keep"
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert report.main(["--out", "file/x.html"]) == 1  # its folder is a file
    assert capsys.readouterr().err.startswith("error: ")


def test_ctrl_c_leaves_no_report(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)  # the last moment: the page is written but not in place
    assert report.main([]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*") if "html" in path.name] == []


def test_help_and_usage_errors_have_their_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        report.main(["--help"])
    assert stopped.value.code == 0
    assert "RESULT_DIR" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        report.main(["--nonsense"])
    assert stopped.value.code == 2
