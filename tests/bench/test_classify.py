"""A classifier's bundle through the bench: image folder in, top-1 and top-5 and the surest mistakes out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import report, run
from bench.accuracy import top_scores
from bench.class_samples import draw_mistakes, mistake_section
from bench.classes_file import ClassesFile, read_classes, write_classes
from bench.columns import shown_columns, text_table
from bench.errors import BenchError
from bench.inputs import load_images
from bench.measure import Job, measure
from bench.records import CLASSES_NAME, Accuracy, Result, TopAccuracy, read_result
from bench.result_checks import check_kinds
from bench.rows import result_row
from bench.wire import TopClasses, decode_classes
from deploy.bundle import Bundle
from deploy.runtime import Classifier

from .conftest import COLOUR_SIDE, COLOURS


def test_an_image_folder_is_measured_and_scored(colour_bundle: Path, colour_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["--bundle", str(colour_bundle), "--out", str(out), "--samples", "12", "--min-seconds", "0", "--warmup", "1"]
    assert run.main([*argv, "--threads", "1"]) == 0
    result = read_result(out / "colours-onnx-fp32@local")
    assert isinstance(result.accuracy, TopAccuracy)
    assert result.accuracy.top1 == pytest.approx(13 / 15)
    assert result.accuracy.top5 == 1.0
    assert result.accuracy.per_class == {"blue": 1.0, "green": pytest.approx(0.6), "red": 1.0}
    assert (result.accuracy.images, result.accuracy.dataset) == (15, "data/test")
    assert (result.schema, result.bundle["task"], result.bundle["imgsz"]) == (3, "classify", [COLOUR_SIDE, COLOUR_SIDE])
    assert result.protocol["top_k"] == 5
    assert "iou" not in result.protocol
    assert len(result.latency.inference_s) == 12
    kept = read_classes(out / "colours-onnx-fp32@local" / CLASSES_NAME)
    assert kept.truth.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    classifier = Classifier(colour_bundle, threads=1)
    for image, class_ids, scores in zip(kept.images, kept.class_ids, kept.scores, strict=True):
        found = classifier(image)
        assert found.class_ids.tolist() == class_ids.tolist()
        np.testing.assert_array_equal(found.scores, scores)


def test_the_report_has_top1_columns_and_the_surest_mistakes(
    colour_bundle: Path, colour_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["--bundle", str(colour_bundle), "--data", str(colour_data), "--samples", "2", "--min-seconds", "0"]
    assert run.main([*argv, "--threads", "1", "--out", str(out), "--json"]) == 0
    (figures,) = json.loads(capsys.readouterr().out)["results"]
    assert (round(figures["top1"], 2), figures["top5"], figures["map50_95"]) == (86.67, 100.0, None)
    assert report.main([str(out), "--out", str(tmp_path / "again.html")]) == 0
    table = capsys.readouterr().out
    assert "top-1 %" in table
    assert "mAP" not in table
    page = (tmp_path / "again.html").read_text(encoding="utf-8")
    assert "Top-1 per class" in page
    assert "AP50-95" not in page
    surest = page[page.index("Surest mistakes") :]
    assert surest.count("<figure") == 2
    assert surest.index("green 1.png") < surest.index("green 0.png"), "the redder one is the surer mistake"
    assert "onnx fp32: red" in surest


def test_only_some_images_are_some_of_every_class(colour_data: Path) -> None:
    images = load_images(colour_data, 6)
    assert images.classified is not None
    assert images.classified.class_ids.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.name == "data/test[6]"
    assert images.labelled


def test_a_data_set_of_another_task_is_refused(
    colour_bundle: Path, tiny_bundle: Path, colour_data: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["--bundle", str(tiny_bundle), "--data", str(colour_data)]) == 1
    assert "has classes of whole images" in capsys.readouterr().err
    assert run.main(["--bundle", str(colour_bundle), "--data", str(tiny_data)]) == 1
    assert "has boxes" in capsys.readouterr().err


def test_a_data_set_of_other_classes_is_refused(
    colour_bundle: Path, colour_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (colour_data / "test" / "red").rename(colour_data / "test" / "violet")
    assert run.main(["--bundle", str(colour_bundle)]) == 1
    assert (
        "has the 3 classes blue, green, violet, the student the 3 classes blue, green, red" in capsys.readouterr().err
    )


def test_the_worker_reports_what_the_classifier_finds(colour_bundle: Path, colour_data: Path) -> None:
    images = tuple(map(str, load_images(colour_data).paths))
    records: list[dict[str, object]] = []
    job = Job(str(colour_bundle), images, threads=1, warmup=0, samples=3, min_seconds=0)
    measure(job, lambda record: records.append(json.loads(json.dumps(record))))
    assert [record["kind"] for record in records] == ["measurement", *["classes"] * 15, "audit", "end"]
    classifier = Classifier(Bundle.open(colour_bundle), threads=1)
    for path, record in zip(images, records[1:-2], strict=True):
        assert decode_classes(record).class_ids.tolist() == classifier(path).class_ids.tolist()
    with pytest.raises(BenchError, match=r"classes of image 0 cannot be read .*1 scores, 3 classes"):
        decode_classes({**records[1], "scores": "AAAAAA=="})


def test_top_scores_count_what_is_named_first_and_among_five() -> None:
    ranked = [np.array(ids, np.int64) for ids in ([2, 1], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [])]
    scores = top_scores(ranked, np.array([2, 4, 0, 3]), 7)
    assert (scores.top1, scores.top5, scores.images) == (0.25, 0.5, 4)
    np.testing.assert_array_equal(scores.per_class_top1, [0, np.nan, 1, 0, 0, np.nan, np.nan])
    with pytest.raises(BenchError, match="4 classifications for 3 images"):
        top_scores(ranked, np.array([0, 1, 2]), 7)
    with pytest.raises(BenchError, match=r"true classes are 0\.\.7, expected 0\.\.6"):
        top_scores(ranked, np.array([0, 1, 2, 7]), 7)


def test_a_classes_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    found = [
        TopClasses(np.array([2, 0]), np.array([0.75, 0.25], np.float32)),
        TopClasses(np.array([], np.int64), np.array([], np.float32)),
    ]
    write_classes(tmp_path / "c.npz", ["a.png", "b.png"], found, np.array([2, 1]), COLOURS)
    read = read_classes(tmp_path / "c.npz")
    assert read.class_ids.tolist() == [[2, 0], [-1, -1]]
    assert read.scores.tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert (read.truth.tolist(), read.class_names) == ([2, 1], COLOURS)
    with pytest.raises(BenchError, match="2 images, classes for 2, truth for 1"):
        write_classes(tmp_path / "d.npz", ["a.png", "b.png"], found, np.array([2]), COLOURS)
    write_classes(tmp_path / "e.npz", ["a.png", "b.png"], found, np.array([2, 1]), COLOURS[:2])
    with pytest.raises(BenchError, match="class ids beyond its 2 names"):
        read_classes(tmp_path / "e.npz")
    with np.load(tmp_path / "c.npz") as archive:
        arrays = dict(archive)
    for name, wrong in (("truth", np.array(["2", "1"])), ("class_names", np.array("red")), ("scores", arrays["truth"])):
        np.savez(tmp_path / "f.npz", **{**arrays, name: wrong})
        with pytest.raises(BenchError, match=rf"is not a classes file \(it has {name} of .*\): run the bench again"):
            read_classes(tmp_path / "f.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "c.npz")
    with pytest.raises(BenchError, match="is not a classes file"):
        read_classes(tmp_path / "c.npz")
    (tmp_path / "c.npz").write_bytes(b"no archive")
    with pytest.raises(BenchError, match="is not a classes file"):
        read_classes(tmp_path / "c.npz")


def test_mistakes_of_images_that_are_gone_are_told(tmp_path: Path) -> None:
    ids, scores = np.array([[1], [0]]), np.array([[0.9], [0.8]], np.float32)
    file = ClassesFile((str(tmp_path / "gone.png"), "b"), ids, scores, np.array([0, 0]), ("<a>", "b"))
    assert draw_mistakes([("one", file)]) == (
        [],
        [f"the images that were classified can no longer be read, e.g. below {tmp_path}"],
    )
    Image.fromarray(np.zeros((5, 9, 3), np.uint8)).save(tmp_path / "gone.png")
    mistakes, notes = draw_mistakes([("one", file)])
    assert notes == []
    assert [(one.truth, one.said) for one in mistakes] == [("<a>", (("one", "b", pytest.approx(0.9)),))]
    assert "&lt;a&gt;" in mistake_section(mistakes)
    assert mistake_section([]) == ""


def test_a_table_of_both_tasks_has_the_columns_of_both(colour_bundle: Path, colour_data: Path, tmp_path: Path) -> None:
    argv = ["--bundle", str(colour_bundle), "--samples", "1", "--min-seconds", "0", "--threads", "1"]
    assert run.main([*argv, "--out", str(tmp_path / "out")]) == 0
    classified = read_result(tmp_path / "out" / "colours-onnx-fp32@local")
    detected = replace(classified, accuracy=Accuracy(0.4, 0.6, {}, 1, "d", "0"))
    rows = [result_row(one, tmp_path) for one in (classified, detected)]
    keys = {"map50_95", "map50", "top1", "top5"}
    assert keys <= {column.key for column in shown_columns(rows)}
    assert keys & {column.key for column in shown_columns(rows[:1])} == {"top1", "top5"}
    assert keys & {column.key for column in shown_columns(rows[1:])} == {"map50_95", "map50"}
    assert [(row.metric, row.accuracy) for row in rows] == [("top-1", pytest.approx(13 / 15)), ("mAP50-95", 0.4)]
    assert "40.0" in text_table(rows)


def test_a_result_from_before_classifiers_is_still_read(colour_bundle: Path, colour_data: Path, tmp_path: Path) -> None:
    argv = ["--bundle", str(colour_bundle), "--samples", "1", "--min-seconds", "0", "--threads", "1", "--no-accuracy"]
    assert run.main([*argv, "--out", str(tmp_path / "out")]) == 0
    fields = json.loads((tmp_path / "out/colours-onnx-fp32@local/result.json").read_text(encoding="utf-8"))
    fields["schema"] = 1
    del fields["bundle"]["task"]
    per_class = {"cell": 0.4}
    fields["accuracy"] = {
        "map50_95": 0.4, "map50": 0.6, "per_class": per_class, "images": 3, "dataset": "d", "dataset_sha256": "0",
    }  # fmt: skip
    read = Result.from_json(json.dumps(fields), "old")
    assert read.accuracy == Accuracy(0.4, 0.6, per_class, 3, "d", "0")
    assert read.schema == 1
    check_kinds(read)
    with pytest.raises(ValueError, match=r"not within 0\.\.1"):
        check_kinds(replace(read, accuracy=TopAccuracy(1.5, 1.0, {}, 3, "d", "0")))
