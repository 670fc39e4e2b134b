from __future__ import annotations

import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import DeployError
from deploy.runtime.letterbox import InputBuffer, letterbox
from deploy.runtime.resize import Resizer, resize_bilinear

REPOSITORY = Path(__file__).resolve().parents[2]


def _image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width"),
    [(480, 640), (640, 480), (427, 640), (333, 500), (100, 37), (1, 1), (1, 900), (719, 1281), (64, 64)],
)
def test_letterbox_gives_the_same_pixels_as_ultralytics(height: int, width: int) -> None:
    augment = pytest.importorskip("ultralytics.data.augment")
    image = _image(height, width)
    expected = augment.LetterBox((96, 160), auto=False)(image=image)
    if expected.shape != (96, 160, 3):
        pytest.skip("ultralytics itself rounds this size to nothing")
    pixels, _ = letterbox(image, 96, 160)
    np.testing.assert_array_equal(pixels[0], expected)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (641, 333), (50, 2000)])
def test_boxes_come_back_where_ultralytics_puts_them(height: int, width: int) -> None:
    ops = pytest.importorskip("ultralytics.utils.ops")
    torch = pytest.importorskip("torch")
    _, geometry = letterbox(_image(height, width), 320, 320)
    boxes = np.random.default_rng(1).uniform(-20, 340, (50, 4)).astype(np.float32)
    expected = ops.scale_boxes((320, 320), torch.from_numpy(boxes.copy()), (height, width)).numpy()
    np.testing.assert_allclose(geometry.to_source(boxes), expected, atol=2e-3)


def test_a_box_drawn_around_the_image_maps_back_to_its_corners() -> None:
    _, geometry = letterbox(_image(480, 640), 320, 320)
    inner = np.array([[0, 40, 320, 280]], np.float32)
    np.testing.assert_allclose(geometry.to_source(inner), [[0, 0, 640, 480]], atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 3), st.integers(1, 3))
def test_any_size_fills_the_input_and_keeps_its_geometry(height: int, width: int, rows: int, columns: int) -> None:
    pixels, geometry = letterbox(np.full((height, width, 3), 7, np.uint8), 32 * rows, 32 * columns)
    assert pixels.shape == (1, 32 * rows, 32 * columns, 3)
    assert set(np.unique(pixels)) <= {7, 114}
    assert (pixels == 7).any()
    assert 0 <= geometry.pad_left < 32 * columns
    assert 0 <= geometry.pad_top < 32 * rows


def _both(image: np.ndarray, height: int, width: int, patch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """The image resized by OpenCV and by numpy, as integers that may go below zero."""
    resized = []
    for backend in ("opencv", "numpy"):
        patch.setenv("EDGE_DISTILL_RESIZE", backend)
        resized.append(resize_bilinear(image, height, width).astype(int))
    return resized[0], resized[1]


def _version(module: ModuleType) -> tuple[int, ...]:
    return tuple(int(part) for part in module.__version__.split(".")[:2])


def test_numpy_resizes_as_opencv_does_within_one_grey_level_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    random = np.random.default_rng(3)
    for case in range(300):
        height, width, new_height, new_width = (int(side) for side in random.integers(1, 300, 4))
        if case % 3 == 0:  # whole factors take paths of their own
            height, width = new_height * int(random.integers(1, 5)), new_width * int(random.integers(1, 5))
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        with_opencv, with_numpy = _both(image, new_height, new_width, monkeypatch)
        worst = np.abs(with_opencv - with_numpy).max()
        assert worst <= 1, (height, width, new_height, new_width)
        if platform.machine() == "x86_64" and _version(cv2) >= (4, 8):  # where no vendor's library steps in
            assert worst == 0, (height, width, new_height, new_width)


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (1080, 1920), (1, 1), (3000, 4)])
@pytest.mark.parametrize("view", ["flipped", "cropped", "turned", "grey"])
def test_numpy_resizes_views_of_any_strides(size: tuple[int, int], view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = _image(*size)
    views = {
        "flipped": image[::-1, ::-1, ::-1],
        "cropped": np.pad(image, ((2, 3), (4, 5), (0, 1)))[2:-3, 4:-5, :3],
        "turned": image.transpose(1, 0, 2),
        "grey": np.broadcast_to(image[..., :1], image.shape),
    }
    monkeypatch.setenv("EDGE_DISTILL_RESIZE", "numpy")
    expected = resize_bilinear(np.ascontiguousarray(views[view]), 240, 320)
    np.testing.assert_array_equal(resize_bilinear(views[view], 240, 320), expected)


def test_resizing_writes_nothing_outside_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_DISTILL_RESIZE", "numpy")
    around = np.full((50, 60, 3), 9, np.uint8)
    Resizer().resize_into(np.full((33, 77, 3), 200, np.uint8), around[5:25, 10:40])
    assert (around[5:25, 10:40] == 200).all()
    around[5:25, 10:40] = 9
    assert (around == 9).all()


def test_sizes_in_turn_and_threads_at_once_share_what_depends_on_the_sizes_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGE_DISTILL_RESIZE", "numpy")
    sizes = [(37, 91), (91, 37), (200, 150), (33, 64), (480, 500)]
    images = [_image(*size, seed) for seed, size in enumerate(sizes)]
    expected = [resize_bilinear(image, 96, 128) for image in images]
    resizer, out = Resizer(), np.zeros((96, 128, 3), np.uint8)
    for _ in range(2):
        for image, result in zip(images, expected, strict=True):
            resizer.resize_into(image, out)
            np.testing.assert_array_equal(out, result)

    def all_of_them(_: int) -> list[np.ndarray]:
        own = Resizer()
        found = [np.zeros((96, 128, 3), np.uint8) for _ in images]
        for image, one in zip(images, found, strict=True):
            own.resize_into(image, one)
        return found

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(all_of_them, range(24)):
            for one, result in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, result)


def test_opencv_is_imported_for_resizing_to_small_sizes_or_where_it_is_asked_for() -> None:
    program = (
        "import os, sys, numpy as np; from deploy.runtime.resize import OPENCV_SIDE, resize_bilinear as r; "
        "image = np.zeros((9, 9, 3), np.uint8); "
        "os.environ['EDGE_DISTILL_RESIZE'] = 'numpy'; r(image, 4, 4); print('cv2' in sys.modules); "
        "del os.environ['EDGE_DISTILL_RESIZE']; r(image, 4, OPENCV_SIDE + 1); print('cv2' in sys.modules); {last}; "
        "print('cv2' in sys.modules)"
    )
    pytest.importorskip("cv2")
    asked = "os.environ['EDGE_DISTILL_RESIZE'] = 'opencv'; r(image, 4, OPENCV_SIDE + 1)"
    for last in ("r(image, 4, OPENCV_SIDE)", asked):
        command = [sys.executable, "-c", program.format(last=last)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", "False", "True"]


def test_an_unknown_way_of_resizing_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_DISTILL_RESIZE", "cv2")
    with pytest.raises(DeployError, match="is 'cv2', expected numpy or opencv"):
        resize_bilinear(_image(9, 9), 4, 4)


def test_a_buffer_used_again_shows_nothing_of_the_image_before() -> None:
    buffer = InputBuffer(96, 160)
    for index, (height, width) in enumerate([(480, 640), (640, 480), (480, 640), (1, 500), (96, 160), (700, 3)]):
        image = _image(height, width, index)
        geometry = buffer.fill(image)
        expected, expected_geometry = letterbox(image, 96, 160)
        np.testing.assert_array_equal(buffer.pixels, expected)
        assert geometry == expected_geometry


@pytest.mark.parametrize(
    "image",
    [
        np.zeros(4, np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_not_an_rgb_image_is_refused_with_its_shape(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(height, width, 3\)"):
        letterbox(image, 32, 32)


def test_a_buffer_that_knows_a_size_takes_grey_and_refuses_other_types_as_before() -> None:
    rng = np.random.default_rng(4)
    buffer = InputBuffer(32, 32)
    colour, grey = rng.integers(0, 256, (20, 31, 3), np.uint8), rng.integers(0, 256, (20, 31), np.uint8)
    for image in (colour, grey, np.full((33, 12, 3), 7, np.uint8), colour):
        geometry = buffer.fill(image)
        pixels, expected = letterbox(image, 32, 32)
        assert geometry == expected
        np.testing.assert_array_equal(buffer.pixels, pixels)
    with pytest.raises(ValueError, match="expected uint8"):
        buffer.fill(colour.astype(np.int8))
