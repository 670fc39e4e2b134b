"""Sources: images, videos, cameras, arrays; what they refuse and how they end."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.errors import DatasetError, DeployError, SourceError
from deploy.runtime.sources import Arrays, Camera, Frame, ImageFiles, UnreadableFrame, VideoFile, open_source

REPOSITORY = Path(__file__).resolve().parents[2]
FRAMES, FPS = 12, 20.0


def _colour(index: int) -> tuple[int, int, int]:
    return (240 - 15 * index, 20 * index, 30)


def _write_video(path: Path, fourcc: str) -> Path:
    cv2 = pytest.importorskip("cv2", reason="videos need OpenCV")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), FPS, (64, 48))
    assert writer.isOpened()
    for index in range(FRAMES):
        writer.write(np.full((48, 64, 3), _colour(index)[::-1], np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize(("name", "fourcc"), [("a.mp4", "mp4v"), ("a.avi", "MJPG")])
def test_a_video_gives_its_frames_in_rgb_with_their_time(tmp_path: Path, name: str, fourcc: str) -> None:
    source = open_source(_write_video(tmp_path / name, fourcc))
    assert isinstance(source, VideoFile)
    assert not source.live
    assert source.fps == pytest.approx(FPS)
    assert source.announced_frames == FRAMES
    frames = [frame for frame in source if isinstance(frame, Frame)]
    source.close()
    source.close()
    assert [frame.index for frame in frames] == list(range(FRAMES))
    assert [frame.timestamp_s for frame in frames] == pytest.approx([index / FPS for index in range(FRAMES)])
    assert frames[3].name == f"{tmp_path / name}#3"
    for frame in frames:
        assert frame.pixels.shape == (48, 64, 3)
        assert np.abs(frame.pixels.mean((0, 1)) - _colour(frame.index)).max() < 12
    assert len({frame.pixels.ctypes.data for frame in frames}) == FRAMES  # no frame overwrites another


def test_a_video_cut_short_gives_what_it_has_and_says_that_it_is_damaged(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="videos need OpenCV")
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), FPS, (64, 48))
    random = np.random.default_rng(0)
    for _ in range(40):
        writer.write(random.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    *frames, last = VideoFile(path)
    assert 15 <= len(frames) <= 22
    assert all(isinstance(frame, Frame) for frame in frames)
    assert isinstance(last, UnreadableFrame)
    assert str(last.error) == f"{path} ends after {len(frames)} of 40 frames: the file is damaged"


def test_a_folder_gives_its_images_sorted_and_a_corrupt_one_in_its_place(tmp_path: Path) -> None:
    for index in (2, 0, 3):
        Image.new("L", (10 + index, 7), 200).save(tmp_path / f"{index}.png")
    (tmp_path / "1.jpg").write_bytes(b"\xff\xd8 no picture")
    (tmp_path / "notes.txt").write_text("not an image")
    frames = list(open_source(tmp_path))
    assert [Path(frame.name).name for frame in frames] == ["0.png", "1.jpg", "2.png", "3.png"]
    assert [type(frame) for frame in frames] == [Frame, UnreadableFrame, Frame, Frame]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert isinstance(frames[3], Frame)
    assert frames[3].pixels.shape == (7, 13, 3)


def test_arrays_and_sources_of_ones_own_are_sources() -> None:
    images = [np.full((2, 3, 3), index, np.uint8) for index in range(3)]
    source = open_source(images)
    assert isinstance(source, Arrays)
    assert [int(frame.pixels[0, 0, 0]) for frame in source if isinstance(frame, Frame)] == [0, 1, 2]
    source.close()
    mine = ImageFiles([])
    assert open_source(mine) is mine
    closed = []

    def generator() -> Iterator[np.ndarray]:
        try:
            yield from images
        finally:
            closed.append(True)

    made = generator()
    source = Arrays(made)
    next(iter(source))
    source.close()
    assert closed == [True]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing.mp4", "no image or video .*missing.mp4: check the path"),
        ("empty", "empty holds no images"),
        ("text.mp4", "text.mp4 cannot be read as a video"),
        ("/dev/video63", "no camera /dev/video63, or it is in use: list them"),
        ("63", "no camera 63, or it is in use"),
        (63, "no camera 63, or it is in use"),
        ("http://127.0.0.1:9/none", "no stream at http://127.0.0.1:9/none: check the address"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line(tmp_path: Path, what: str | int, words: str, monkeypatch) -> None:
    pytest.importorskip("cv2", reason="videos need OpenCV")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    with pytest.raises(DeployError, match=words) as caught:
        open_source(what)
    assert "\n" not in str(caught.value)


def test_a_video_without_opencv_says_what_to_install_and_images_do_not_need_it(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.mp4").write_bytes(b"whatever")
    program = (
        "import sys; sys.modules['cv2'] = None\n"
        "from deploy.runtime.sources import open_source\n"
        "print(len(list(open_source(sys.argv[1]))))\n"
        "for what in (sys.argv[2], 0):\n"
        "    try: open_source(what)\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.png"), str(tmp_path / "a.mp4")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "1"
    assert len(lines) == 3
    for line in lines[1:]:
        assert line.startswith("SourceError")
        assert line.endswith("pip install opencv-python-headless")


def test_what_opencvs_libraries_think_of_a_refused_source_stays_off_stderr(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="videos need OpenCV")
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    program = (
        "import sys; from deploy.errors import SourceError; from deploy.runtime.sources import open_source\n"
        "for what in sys.argv[1:]:\n"
        "    try: open_source(what)\n"
        "    except SourceError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "text.mp4"), "63", "http://127.0.0.1:9/none"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == ""


class _NetworkCamera(BaseHTTPRequestHandler):
    """Motion JPEG, as cheap network cameras send it: `frames` images, then the line goes dead."""

    frames = 8

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for index in range(self.frames):
            picture = BytesIO()
            Image.new("RGB", (64, 48), _colour(index)).save(picture, "JPEG", quality=95)
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture.getvalue())}\r\n\r\n"
            self.wfile.write(head.encode() + picture.getvalue() + b"\r\n")

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def network_camera() -> Iterator[str]:
    pytest.importorskip("cv2", reason="cameras need OpenCV")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _NetworkCamera)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/stream.mjpg"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_network_camera_is_live_and_its_end_is_an_error(network_camera: str) -> None:
    source = open_source(network_camera)
    assert isinstance(source, Camera)
    assert source.live
    frames = []
    with pytest.raises(SourceError, match=r"gives no more frames after \d+: check its cable or its network"):
        frames.extend(frame for frame in source if isinstance(frame, Frame))
    source.close()
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert len(frames) >= _NetworkCamera.frames - 1  # FFmpeg's parser may keep the last one back
    assert np.abs(frames[2].pixels.mean((0, 1)) - _colour(2)).max() < 12
    times = [frame.timestamp_s for frame in frames]
    assert times == sorted(times)


def test_a_password_appears_in_no_name_and_no_error(network_camera: str) -> None:
    address = network_camera.replace("http://", "http://me:secret@")
    source = Camera(address)
    frame = next(iter(source))
    source.close()
    assert frame.name == f"camera {network_camera}#0"
    with pytest.raises(SourceError) as caught:
        Camera("rtsp://me:secret@127.0.0.1:9/none")
    assert "secret" not in str(caught.value)
    assert "no stream at rtsp://127.0.0.1:9/none" in str(caught.value)


def test_a_missing_video_is_refused_when_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="check the path"):
        VideoFile(tmp_path / "none.mp4")
