from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.runtime.letterbox import letterbox
from deploy.runtime.resize import resize_bilinear, resize_bilinear_pillow


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


@pytest.mark.parametrize("shape", [(480, 640), (37, 211), (3, 5), (200, 64)])
@pytest.mark.parametrize("target", [(240, 320), (64, 64), (111, 7)])
def test_pillow_resizes_within_one_grey_level_of_opencv(shape: tuple[int, int], target: tuple[int, int]) -> None:
    pytest.importorskip("cv2")
    image = _image(*shape)
    with_opencv = resize_bilinear(image, *target).astype(int)
    with_pillow = resize_bilinear_pillow(image, *target).astype(int)
    assert np.abs(with_opencv - with_pillow).max() <= 1


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
