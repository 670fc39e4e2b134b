"""From an image to classes: the fit of the image, the ranking, and what opens which bundle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.bundle import InputSpec, Manifest, OutputSpec
from deploy.errors import BundleError
from deploy.runtime import Classifier, Detector
from deploy.runtime.fit import fit_image
from deploy.runtime.tasks import check_task


def _image(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(90, 61), (61, 90), (40, 40), (17, 200), (30, 33), (1, 7)])
@pytest.mark.parametrize(("side", "resize"), [(32, 32), (32, 40), (33, 36)])
def test_a_crop_is_that_of_torchvision_to_the_last_bit(size: tuple[int, int], side: int, resize: int) -> None:
    from PIL import Image
    from torchvision.transforms import v2

    image = _image(*size)
    met = fit_image(image, InputSpec("pixels", side, side, fit="crop", resize=resize))
    expected = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(side)])(Image.fromarray(image))
    np.testing.assert_array_equal(met[0], np.asarray(expected))


def test_a_crop_is_what_ultralytics_classifies() -> None:
    from PIL import Image
    from ultralytics.data.augment import classify_transforms

    image = _image(83, 120)
    met = fit_image(image, InputSpec("pixels", 64, 64, fit="crop", resize=64))
    expected = classify_transforms(64)(Image.fromarray(image)).numpy()
    np.testing.assert_allclose(met[0].transpose(2, 0, 1) / np.float32(255), expected, atol=1e-7)


@pytest.mark.parametrize("size", [(90, 61), (28, 28), (5, 300)])
def test_a_stretch_is_that_of_torchvision_to_the_last_bit(size: tuple[int, int]) -> None:
    from PIL import Image
    from torchvision.transforms import v2

    image = _image(*size)
    met = fit_image(image, InputSpec("pixels", 28, 40, fit="stretch"))
    expected = v2.Resize((28, 40), antialias=True)(Image.fromarray(image))
    np.testing.assert_array_equal(met[0], np.asarray(expected))


def test_grey_and_rgba_images_are_classified_as_their_colours() -> None:
    spec = InputSpec("pixels", 20, 20, fit="crop", resize=24)
    image = _image(30, 50)
    rgba = np.concatenate([image, np.zeros((30, 50, 1), np.uint8)], axis=2)
    np.testing.assert_array_equal(fit_image(rgba, spec), fit_image(image, spec))
    grey = image[..., 0]
    np.testing.assert_array_equal(fit_image(grey, spec), fit_image(np.stack([grey] * 3, axis=2), spec))
    with pytest.raises(ValueError, match="expected uint8"):
        fit_image(image.astype(np.float32), spec)  # type: ignore[arg-type]


class _Engine:
    """Answers every image with the same logits, in memory that it uses again."""

    def __init__(self, logits: Sequence[float]) -> None:
        self.logits = np.array([logits], np.float32)
        self.met: list[NDArray[np.uint8]] = []

    def infer(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        self.met.append(pixels)
        return (self.logits,)

    def facts(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        self.logits = np.zeros((1, 0), np.float32)


def _manifest(classes: int) -> Manifest:
    return Manifest(
        engine="onnx",
        precision="fp32",
        files={},
        model_file="model",
        input=InputSpec("pixels", 8, 8, fit="stretch"),
        outputs=(OutputSpec("logits", "logits", 0, classes, "NC"),),
        reg_max=0,
        class_names=tuple(f"c{index}" for index in range(classes)),
        student={},
        tools={},
        task="classify",
    )


def test_the_likeliest_classes_come_first_with_their_softmax() -> None:
    engine = _Engine([1.0, 3.0, -2.0, 3.0, 0.5, 2.0])
    found = Classifier.with_engine(engine, _manifest(6), top_k=4)(_image(10, 12))
    assert found.class_ids.tolist() == [1, 3, 5, 0]  # equal logits in order of their ids
    weights = np.exp(np.array([1.0, 3.0, -2.0, 3.0, 0.5, 2.0]))
    np.testing.assert_allclose(found.scores, (weights / weights.sum())[[1, 3, 5, 0]], rtol=1e-6)
    np.testing.assert_array_equal(found.logits, engine.logits[0])
    assert engine.met[0].shape == (1, 8, 8, 3)
    engine.logits[:] = 0
    assert found.logits[1] == 3.0, "a classification is in memory of its own"


def test_more_classes_than_there_are_is_all_of_them() -> None:
    found = Classifier.with_engine(_Engine([2.0, 1.0]), _manifest(2), top_k=5)(_image(8, 8))
    assert found.class_ids.tolist() == [0, 1]
    assert found.scores.sum() == pytest.approx(1.0)


def test_logits_that_are_huge_or_not_finite_give_finite_scores() -> None:
    found = Classifier.with_engine(_Engine([1e38, np.nan, -1e38, np.inf]), _manifest(4))(_image(8, 8))
    assert found.class_ids.tolist() == [0, 2]
    assert found.scores.tolist() == [1.0, 0.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Classifier.with_engine(_Engine([3.4e38, -3.4e38, 1e-45]), _manifest(3))(_image(8, 8))
    assert found.scores.tolist() == [1.0, 0.0, 0.0]
    assert len(Classifier.with_engine(_Engine([np.nan, np.nan]), _manifest(2))(_image(8, 8))) == 0


def test_a_top_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="top_k is 0, expected at least 1"):
        Classifier.with_engine(_Engine([0.0]), _manifest(1), top_k=0)


def test_a_bundle_of_another_task_is_refused_with_what_opens_it(deployed_bundle_of_boxes: Manifest) -> None:
    with pytest.raises(
        BundleError, match=r"task 'detect', expected 'classify': open it with deploy\.runtime\.Detector"
    ):
        Classifier.with_engine(_Engine([0.0]), deployed_bundle_of_boxes)
    with pytest.raises(BundleError, match=r"task 'classify', expected 'detect': .*Classifier instead of Detector"):
        Detector.with_engine(_Engine([0.0]), _manifest(3))
    check_task(_manifest(3), "classify", "b")
    with pytest.raises(
        BundleError, match=r"^b is of task 'classify', expected 'segment': .* deploy.runtime.Classifier"
    ):
        check_task(_manifest(3), "segment", "b")


@pytest.fixture
def deployed_bundle_of_boxes() -> Manifest:
    outputs = (OutputSpec("b", "box", 8, 64, "NHWC"), OutputSpec("c", "class", 8, 1, "NHWC"))
    spec = InputSpec("pixels", 32, 32)
    return Manifest("onnx", "fp32", {}, "model", spec, outputs, 16, ("cell",), {}, {})


def test_a_classification_says_how_many_classes_it_names(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(_image(9, 9)).save(tmp_path / "image.png")
    classifier = Classifier.with_engine(_Engine([0.0, 1.0, 2.0]), _manifest(3), top_k=2)
    from_file, from_pixels = classifier(tmp_path / "image.png"), classifier(_image(9, 9))
    assert len(from_file) == len(from_pixels) == 2
    classifier.close()
