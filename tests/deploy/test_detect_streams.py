"""`python -m deploy.detect` on videos, cameras and broken input; what it leaves behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ultralytics", reason="making bundles needs the [train] extra")
pytest.importorskip("cv2", reason="videos need OpenCV")

from deploy import detect
from deploy.runtime import Detector, read_image
from deploy.runtime.recording import VideoWriter
from deploy.runtime.sources import Frame, VideoFile

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def images(deployed_student) -> list[Path]:
    return sorted((deployed_student.data_yaml.parent / "images/val").iterdir())


@pytest.fixture
def bundle(bundles: Callable[[str, str], Path]) -> Path:
    return bundles("onnx", "fp32")


def _write_video(path: Path, images: list[Path], times: int = 2, fps: float = 10.0) -> Path:
    writer = VideoWriter(path, fps)
    for image in images * times:
        writer.write(np.asarray(Image.open(image).convert("RGB").resize((128, 96))))
    writer.close()
    return path


def _frames(path: Path) -> list[Frame]:
    return [frame for frame in VideoFile(path) if isinstance(frame, Frame)]


def test_a_video_becomes_a_video_with_every_frame_drawn_and_printed(
    bundle: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, out = _write_video(tmp_path / "street.mp4", images), tmp_path / "out"
    arguments = ["--bundle", str(bundle), "--out", str(out), "--json", "--conf", "0.05", str(video), str(images[0])]
    assert detect.main(arguments) == 0
    captured = capsys.readouterr()
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert sorted(path.name for path in out.iterdir()) == [f"{images[0].stem}.jpg", "street.mp4"]
    assert records[0]["image"] == str(images[0])
    assert [record["image"] for record in records[1:]] == [f"{video}#{index}" for index in range(12)]
    assert [record["timestamp_s"] for record in records[1:]] == pytest.approx([index / 10 for index in range(12)])
    drawn, source = _frames(out / "street.mp4"), _frames(video)
    assert len(drawn) == len(source) == 12
    assert drawn[5].timestamp_s == pytest.approx(0.5)
    expected = Detector(bundle, conf=0.05)(source[5].pixels)
    assert [found["score"] for found in records[6]["detections"]] == pytest.approx(expected.scores.tolist(), abs=1e-4)
    assert np.abs(drawn[5].pixels.astype(int) - source[5].pixels).max() > 60
    assert "street: 12 read, 12 done, 0 dropped, 0 failed" in captured.err


def test_a_video_may_be_cut_and_nothing_drawn(
    bundle: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    video = _write_video(tmp_path / "a.mp4", images)
    capsys.readouterr()
    assert detect.main(["--bundle", str(bundle), "--no-draw", "--frames", "3", str(video)]) == 0
    captured = capsys.readouterr()
    assert [line.partition(": ")[0] for line in captured.out.splitlines()] == [f"{video}#{index}" for index in range(3)]
    assert "3 done" in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_corrupt_image_among_others_is_told_and_the_others_are_kept(
    bundle: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for index in range(5):
        (folder / f"{index}.png").write_bytes(images[index].read_bytes()[: 60 if index == 2 else None])
    assert detect.main(["--bundle", str(bundle), "--out", str(out), "--json", str(folder)]) == 1
    captured = capsys.readouterr()
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert [Path(record["image"]).name for record in records] == ["0.png", "1.png", "3.png", "4.png", "2.png"]
    assert "replace or remove it" in records[-1]["error"]
    assert sorted(path.name for path in out.iterdir()) == ["0.jpg", "1.jpg", "3.jpg", "4.jpg"]
    assert "images: 5 read, 4 done, 0 dropped, 1 failed" in captured.err
    assert "2.png" in captured.err


def test_a_video_that_is_none_is_refused_in_one_line_and_leaves_nothing(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.mp4").write_text("no video\n" * 500)
    capsys.readouterr()
    common = ["--bundle", str(bundle), "--out", str(tmp_path / "out")]
    assert detect.main([*common, str(tmp_path / "no.mp4")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'no.mp4'} cannot be read as a video\n"
    assert detect.main([*common, "--camera", "63"]) == 1
    assert "error: no camera 63" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["no.mp4"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--camera", "0", "x.jpg"], "give images or videos, or else --camera"),
        (["--frames", "0", "x.mp4"], "'0': expected a whole number"),
        (["--no-draw", "--out", "o", "x.mp4"], "--out is for drawings"),
    ],
)
def test_flags_that_contradict_each_other_exit_2(arguments: list[str], words: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        detect.main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


class _NetworkCamera(BaseHTTPRequestHandler):
    """Motion JPEG at some 50 frames per second; `frames` of them, then the line goes dead."""

    frames = 10**6

    def do_GET(self) -> None:
        picture = BytesIO()
        Image.effect_noise((128, 96), 80).convert("RGB").save(picture, "JPEG")
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture.getvalue())}\r\n\r\n"
        try:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for _ in range(self.frames):
                self.wfile.write(head.encode() + picture.getvalue() + b"\r\n")
                time.sleep(0.02)
        except OSError:
            return  # the viewer has gone

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def network_camera() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _NetworkCamera)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/stream.mjpg"
    server.shutdown()
    server.server_close()
    thread.join()


def test_ctrl_c_on_a_camera_keeps_a_playable_recording(bundle: Path, network_camera: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "deploy.detect", "--bundle", str(bundle), "--out", str(out), "--json"]
    command += ["--threads", "1", "--camera", network_camera]
    program = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert program.stdout is not None
    records = [json.loads(program.stdout.readline()) for _ in range(8)]
    os.kill(program.pid, signal.SIGINT)
    rest, log = program.communicate(timeout=60)
    assert program.returncode == 130, log
    assert "Traceback" not in log
    assert "interrupted: what was recorded up to here is kept" in log
    records += [json.loads(line) for line in rest.splitlines()]
    times = [record["timestamp_s"] for record in records]
    assert times == sorted(times)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["camera.mp4"]
    # At the 25 frames per second that FFmpeg takes such a camera for; the last result may not have been drawn.
    fewest, most = (25 * (time_s - times[0]) + 1 for time_s in times[-2:])
    assert fewest - 2 <= len(_frames(out / "camera.mp4")) <= most + 2
    done = int(log.split(" done")[0].split()[-1])
    assert done == len(records)


def test_a_camera_that_goes_dead_is_an_error_and_its_recording_is_kept(
    bundle: Path, network_camera: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(_NetworkCamera, "frames", 9)
    out = tmp_path / "out"
    assert detect.main(["--bundle", str(bundle), "--out", str(out), "--camera", network_camera]) == 1
    captured = capsys.readouterr()
    assert "gives no more frames after" in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.out.splitlines()) >= 1
    assert len(_frames(out / "camera.mp4")) >= 1


def test_ctrl_c_on_files_leaves_nothing(bundle: Path, images: list[Path], tmp_path: Path, monkeypatch, capsys) -> None:
    video = _write_video(tmp_path / "a.mp4", images)
    written: list[int] = []

    def interrupted(self: VideoWriter, image: np.ndarray, timestamp_s: float | None = None) -> None:
        written.append(1)
        if len(written) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(VideoWriter, "write", interrupted)
    assert detect.main(["--bundle", str(bundle), "--out", str(tmp_path / "out"), str(video)]) == 130
    assert "interrupted: nothing half-written was left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream ")]


def test_a_recording_keeps_a_cameras_time_though_frames_were_dropped(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", 10.0)
    for timestamp_s, value in ((5.0, 0), (5.1, 60), (5.5, 120), (5.52, 90), (5.53, 90), (5.6, 240)):
        writer.write(np.full((48, 64, 3), value, np.uint8), timestamp_s)
    writer.close()
    writer.close()
    values = [round(float(frame.pixels.mean())) for frame in _frames(tmp_path / "a.mp4")]
    assert values == pytest.approx([0, 60, 60, 60, 60, 120, 90, 240], abs=8)
    VideoWriter(tmp_path / "none.mp4").close()
    assert not (tmp_path / "none.mp4").exists()


def test_frames_of_another_size_are_scaled_to_the_videos(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", 10.0)
    for side in (64, 32, 100):
        writer.write(np.full((side, side, 3), 2 * side, np.uint8))
    writer.close()
    frames = _frames(tmp_path / "a.mp4")
    assert [frame.pixels.shape for frame in frames] == [(64, 64, 3)] * 3
    assert [float(frame.pixels.mean()) for frame in frames] == pytest.approx([128, 64, 200], abs=6)


def test_drawn_images_are_those_of_the_detector(bundle: Path, images: list[Path], tmp_path: Path) -> None:
    from deploy.runtime import draw_detections

    out = tmp_path / "out"
    assert detect.main(["--bundle", str(bundle), "--out", str(out), "--conf", "0.05", str(images[1])]) == 0
    detector = Detector(bundle, conf=0.05)
    expected = draw_detections(read_image(images[1]), detector(images[1]), detector.manifest.class_names)
    Image.fromarray(expected).save(tmp_path / "expected.jpg", quality=90)
    np.testing.assert_array_equal(read_image(out / f"{images[1].stem}.jpg"), read_image(tmp_path / "expected.jpg"))
