"""The worker: what it reports, and that it ends when nobody listens any more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.errors import BenchError
from bench.measure import Job, decode_detections, encode_detections, main, measure
from deploy.runtime import Detections, Detector

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = [sys.executable, str(REPOSITORY / "bench" / "measure.py")]


@pytest.fixture
def images(tiny_data: Path) -> tuple[str, ...]:
    return tuple(str(path) for path in sorted((tiny_data.parent / "images" / "val").iterdir()))


def test_the_records_come_in_order_and_hold_every_raw_sample(tiny_bundle: Path, images: tuple[str, ...]) -> None:
    records = _records(Job(str(tiny_bundle), images, threads=1, warmup=2, samples=17, min_seconds=0))
    assert [record["kind"] for record in records] == ["measurement", *["detections"] * 6, "audit", "end"]
    measurement = records[0]
    assert {name: len(samples) for name, samples in measurement["latency"].items()} == {
        "preprocess_s": 17,
        "inference_s": 17,
        "postprocess_s": 17,
    }
    assert min(min(samples) for samples in measurement["latency"].values()) > 0
    assert measurement["load_s"] > 0
    assert measurement["first_inference_s"] > 0
    assert measurement["executed"]["library"] == "onnxruntime"
    assert measurement["machine"]["before"]["load_average"] is not None
    protocol = measurement["protocol"]
    assert (protocol["threads"], protocol["warmup"], protocol["samples"]) == (1, 2, 17)
    assert len(protocol["warmup_s"]) == 2
    assert min(protocol["warmup_s"]) > 0
    assert (protocol["conf"], protocol["iou"], protocol["max_det"]) == (0.25, 0.7, 300)
    assert protocol["accuracy"] == {"conf": 0.001, "iou": 0.7, "max_det": 300, "multi_label": True}
    assert json.loads(json.dumps(records)) == records


def test_the_accuracy_pass_gives_what_the_detector_gives(tiny_bundle: Path, images: tuple[str, ...]) -> None:
    records = _records(Job(str(tiny_bundle), images, threads=1, samples=1, min_seconds=0))
    detector = Detector(tiny_bundle, conf=0.001, iou=0.7, max_det=300, threads=1, multi_label=True)
    for record, image in zip(records[1:-2], images, strict=True):
        expected, found = detector(image), decode_detections(record)
        assert len(expected) > 10
        np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.class_ids, expected.class_ids)


def test_without_accuracy_only_the_measurement_is_made(tiny_bundle: Path, images: tuple[str, ...]) -> None:
    records = _records(Job(str(tiny_bundle), images, samples=1, min_seconds=0, accuracy=False))
    assert [record["kind"] for record in records] == ["measurement", "audit", "end"]
    assert records[0]["protocol"]["accuracy"] is None
    assert records[0]["protocol"]["threads"] == len(os.sched_getaffinity(0))


def test_every_load_is_a_first_one_unless_the_cache_is_asked_for(
    tiny_bundle: Path, images: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_DISTILL_CACHE", str(tmp_path / "cache"))
    job = Job(str(tiny_bundle), images, samples=1, min_seconds=0, accuracy=False)
    states = [
        _records(replace(job, model_cache=asked))[0]["executed"]["model_cache"] for asked in (False, True, True, False)
    ]
    assert states == ["off", "stored", "loaded", "off"]


def test_the_timed_loop_lasts_as_long_as_asked(tiny_bundle: Path, images: tuple[str, ...]) -> None:
    record = _records(Job(str(tiny_bundle), images, samples=1, min_seconds=0.3, accuracy=False))[0]
    assert record["protocol"]["samples"] == len(record["latency"]["inference_s"]) > 1


def test_peak_memory_leaves_the_accuracy_pass_out(tiny_bundle: Path, tmp_path: Path) -> None:
    for index in range(9):
        side = 5000 if index == 8 else 32  # the last of nine is not among those of the timed loop
        Image.new("RGB", (side, side), (index, 2, 3)).save(tmp_path / f"{index}.png")
    images = tuple(str(tmp_path / f"{index}.png") for index in range(9))
    peaks = []
    for accuracy in (False, True):
        job = Job(str(tiny_bundle), images, threads=1, samples=1, min_seconds=0, accuracy=accuracy)
        done = _worker(job)
        assert done.returncode == 0, done.stderr
        peaks.append(json.loads(done.stdout.splitlines()[0])["peak_rss_bytes"])
    assert abs(peaks[1] - peaks[0]) < 50e6  # the large image takes 75 MB
    assert peaks[0] > 20e6


def test_processor_time_memory_and_processors_are_recorded(tiny_bundle: Path, images: tuple[str, ...]) -> None:
    record = _records(Job(str(tiny_bundle), images, threads=1, samples=50, min_seconds=0.1, accuracy=False))[0]
    cpu, memory = record["cpu"], record["memory"]
    assert 0 < cpu["user_s"] + cpu["system_s"] < 4 * cpu["wall_s"] + 0.1
    assert cpu["wall_s"] >= sum(sum(samples) for samples in record["latency"].values()) > 0.05
    assert 1e7 < memory["before_load_bytes"] <= memory["warm_bytes"] <= record["peak_rss_bytes"]
    assert record["protocol"]["affinity"] == sorted(os.sched_getaffinity(0))
    assert isinstance(record["machine"]["during"], list)
    assert record["throughput"] is None


def test_a_meter_s_file_gives_the_energy_of_the_timed_loop(
    tiny_bundle: Path, images: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "meter").write_text("5.0 W")
    job = Job(str(tiny_bundle), images, samples=1, min_seconds=0.2, accuracy=False, meter=str(tmp_path / "meter"))
    record = _records(job)[0]
    assert record["energy"]["source"] == ["file"]
    assert record["energy"]["joules"] == pytest.approx(5.0 * record["cpu"]["wall_s"])
    assert record["energy"]["seconds"] >= 0.2


@pytest.mark.parametrize("streams", [1, 3])
def test_the_throughput_scenario_runs_so_many_streams_at_once(
    tiny_bundle: Path, images: tuple[str, ...], streams: int
) -> None:
    job = Job(str(tiny_bundle), images, threads=2, samples=20, min_seconds=0.2, accuracy=False, streams=streams)
    records = _records(job)
    found = records[0]["throughput"]
    assert (found["streams"], found["threads_per_stream"]) == (streams, max(1, 2 // streams))
    assert len(found["latency_s"]) == streams
    assert found["images"] == sum(map(len, found["latency_s"])) >= 20
    assert found["wall_s"] >= 0.2
    assert found["fps"] == found["images"] / found["wall_s"]
    for latencies in found["latency_s"]:
        assert 0 < sum(latencies) <= found["wall_s"]  # a stream works on one image at a time
    assert json.loads(json.dumps(records)) == records


def test_few_large_images_are_kept_in_memory(tiny_bundle: Path, tmp_path: Path) -> None:
    for index in range(4):
        Image.new("RGB", (2500, 2000)).save(tmp_path / f"{index}.png")
    images = tuple(str(path) for path in sorted(tmp_path.glob("*.png")))
    protocol = _records(Job(str(tiny_bundle), images, samples=1, min_seconds=0, accuracy=False))[0]["protocol"]
    assert (protocol["timed_images"], protocol["timed_images_bytes"]) == (2, 30_000_000)


def test_detections_survive_the_journey() -> None:
    random = np.random.default_rng(0)
    for count in (0, 1, 300):
        sent = Detections(
            random.normal(size=(count, 4)).astype(np.float32),
            random.random(count).astype(np.float32),
            random.integers(0, 80, count),
        )
        found = decode_detections(json.loads(json.dumps(encode_detections(3, sent))))
        np.testing.assert_array_equal(found.boxes_xyxy, sent.boxes_xyxy)
        np.testing.assert_array_equal(found.scores, sent.scores)
        np.testing.assert_array_equal(found.class_ids, sent.class_ids)
        assert found.boxes_xyxy.shape == (count, 4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"boxes_xyxy": None}, "TypeError"),
        ({"boxes_xyxy": 5}, "TypeError"),
        ({"scores": "AAA"}, "padding"),
        ({"scores": "*AAA"}, "base64"),
        ({"class_ids": "AAAA"}, "buffer size must be a multiple"),
        ({"scores": ""}, "4 sides of boxes, 0 scores, 1 classes"),
    ],
)
def test_broken_detections_are_refused_in_one_line(change: dict[str, Any], says: str) -> None:
    sent = Detections(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.ones(1, np.int64))
    with pytest.raises(BenchError, match=f"detections of image 3 cannot be read .*{says}.*run the bench again"):
        decode_detections(encode_detections(3, sent) | change)
    record = encode_detections(3, sent)
    del record["boxes_xyxy"]
    with pytest.raises(BenchError, match="KeyError: 'boxes_xyxy'"):
        decode_detections(record)


def test_a_job_survives_json_with_awkward_names() -> None:
    job = Job("/a b/$(x)\n", ("größe 日本.png", "a\nb", "\udcff.png"), threads=None, samples=3)
    assert Job.from_json(job.to_json(), "test") == job
    assert "\n" not in job.to_json()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no job"),
        ("[]", "is no job"),
        ('{"bundle": "b"}', "is no job"),
        ('{"bundle": "b", "images": ["a"], "speed": 3}', "speed"),
        ('{"bundle": "b", "images": []}', "at least 1 of each"),
        ('{"bundle": "b", "images": ["a"], "samples": 0}', "at least 1 of each"),
    ],
)
def test_a_malformed_job_is_refused(text: str, says: str) -> None:
    with pytest.raises(BenchError, match=says):
        Job.from_json(text, "job.json")


def test_a_job_in_a_file_runs_by_hand_from_anywhere(tiny_bundle: Path, images: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(Job(str(tiny_bundle), images, samples=2, min_seconds=0).to_json())
    (tmp_path / "bench").mkdir()  # what happens to lie in the current folder is not imported
    (tmp_path / "bench" / "__init__.py").write_text("raise SystemExit('the wrong bench')")
    done = subprocess.run([*WORKER, "job.json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 9
    assert "progress accuracy 100%" in done.stderr


def test_the_worker_ends_when_its_stdin_does(tiny_bundle: Path, images: tuple[str, ...]) -> None:
    job = Job(str(tiny_bundle), images, samples=1, min_seconds=600)
    with subprocess.Popen(
        [*WORKER, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as worker:
        assert worker.stdin is not None
        assert worker.stderr is not None
        worker.stdin.write(job.to_json().encode() + b"\n")
        worker.stdin.flush()
        assert worker.stderr.readline().startswith(b"progress timing")
        worker.stdin.close()
        assert worker.wait(30) == 3


def test_stdout_holds_the_records_alone_whatever_a_runtime_prints() -> None:
    script = (
        "import os; from bench.measure import _claimed_stdout; out = _claimed_stdout();"
        "print('noise', flush=True); os.system('echo noise'); out.write('record'); out.flush()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "record"
    assert done.stderr == "noise\nnoise\n"


def test_a_bad_image_is_named_and_nothing_is_reported_whole(
    tiny_bundle: Path, images: tuple[str, ...], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff\xe0 no image")
    done = _worker(Job(str(tiny_bundle), (*images, *images, str(bad)), samples=1, min_seconds=0))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {bad} cannot be decoded")
    assert '"kind": "end"' not in done.stdout


@pytest.mark.parametrize(("name", "content"), [("none.json", None), ("model.tflite", b"\xff\xd8\x00 no text")])
def test_a_job_that_is_missing_or_no_text_is_one_line(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    saved = os.dup(1)
    try:
        assert main([str(tmp_path / name)]) == 1
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert name in err
    assert err.count("\n") == 1


def _records(job: Job) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    measure(job, lambda record: records.append(dict(record)))
    return records


def _worker(job: Job) -> subprocess.CompletedProcess[str]:
    with subprocess.Popen(
        [*WORKER, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin is not None
        worker.stdin.write(job.to_json() + "\n")
        worker.stdin.flush()
        # Held open: its end would end the worker.
        assert worker.stdout is not None
        assert worker.stderr is not None
        stdout, stderr = worker.stdout.read(), worker.stderr.read()
        return subprocess.CompletedProcess(worker.args, worker.wait(), stdout, stderr)
