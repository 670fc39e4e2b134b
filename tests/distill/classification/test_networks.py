"""Networks by name, what is read from them, and the teachers made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="distillation needs the [train] extra")
pytest.importorskip("torchvision", reason="distillation needs the [train] extra")
pytest.importorskip("ultralytics", reason="distillation needs the [train] extra")


from distill.classification.augment import Augmentation  # noqa: E402
from distill.classification.classifier import Classifier  # noqa: E402
from distill.classification.course import CourseCnn  # noqa: E402
from distill.classification.folders import open_image_folder  # noqa: E402
from distill.classification.learner import Lesson, Taught, class_pair, total  # noqa: E402
from distill.classification.lessons import Answers, Batch, FrozenTeacher, Precision, TrainingImages  # noqa: E402
from distill.classification.methods.ensembles import FeatureTaught  # noqa: E402
from distill.classification.methods.sftn import FriendlyTeacher  # noqa: E402
from distill.classification.methods.sub_teachers import SubTeachers  # noqa: E402
from distill.classification.networks import build_classifier  # noqa: E402
from distill.classification.pixels import Frame, Pixels  # noqa: E402
from distill.errors import DistillError  # noqa: E402


@pytest.mark.parametrize(
    ("name", "side", "parameters"),
    [
        ("course-cifar10-teacher", 32, 1_515_018),
        ("course-cifar10-student", 32, 313_354),
        ("course-mnist-teacher", 28, 1_433_610),
        ("course-mnist-student", 28, 20_490),
        ("mobilenet_v2", 32, 2_236_682),
    ],
)
def test_networks_have_exactly_the_parameters_of_their_originals(name: str, side: int, parameters: int) -> None:
    assert build_classifier(name, classes=10, height=side, width=side).parameter_count() == parameters


@pytest.mark.parametrize("side", [7, 8, 28, 32])
def test_the_course_network_pads_as_tensorflow_does(side: int) -> None:
    """Same padding by its definition: output i reads inputs from ``stride * i - before``, where ``before`` is half of
    the padding that is needed, rounded down."""
    network = CourseCnn((2, 3), channels=1, classes=2, height=side, width=side)
    image = torch.rand(1, 1, side, side)

    def same_convolution(maps: Any, layer: torch.nn.Conv2d) -> Any:
        size = maps.shape[2]
        out = -(-size // 2)
        needed = max((out - 1) * 2 + 3 - size, 0)
        before = needed // 2
        padded = torch.zeros(1, maps.shape[1], size + needed, size + needed)
        padded[:, :, before : before + size, before : before + size] = maps
        rows = [
            [
                (padded[0, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] * layer.weight).sum((1, 2, 3)) + layer.bias
                for j in range(out)
            ]
            for i in range(out)
        ]
        return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)[None]

    first = torch.nn.functional.leaky_relu(same_convolution(image, network.conv1), 0.2)
    size = first.shape[2]
    pooled = torch.stack(
        [
            torch.stack([first[0, :, i : i + 2, j : j + 2].amax((1, 2)) for j in range(size)], dim=1)
            for i in range(size)
        ],
        dim=1,
    )[None]
    expected = network.fc(same_convolution(pooled, network.conv2).flatten(1))
    torch.testing.assert_close(network(image), expected, rtol=1e-5, atol=1e-6)


def test_grey_networks_see_the_luma_of_an_image() -> None:
    classifier = build_classifier("grey-cnn-4-8", classes=3, height=16, width=16).eval()
    image = torch.rand(2, 3, 16, 16)
    grey = (image * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(classifier(image), classifier(grey.expand(2, 3, 16, 16)), rtol=1e-5, atol=1e-5)


def test_activations_are_read_without_leaving_anything_in_the_network() -> None:
    classifier = build_classifier("mobilenet_v2", classes=5, height=32, width=32).eval()
    images, none = torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.long)
    found = classifier.activations(images, none, none)
    torch.testing.assert_close(found.logits, classifier(images))
    head = classifier.network.classifier[1]
    torch.testing.assert_close(head(found.embedding), found.logits)
    assert [f.shape[1] for f in found.feats] == list(classifier.layers.channels)
    sides = [f.shape[2] for f in found.feats]
    assert sides == sorted(sides, reverse=True)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in classifier.modules())


def test_the_embedding_of_a_flattened_map_is_its_mean_over_positions() -> None:
    classifier = build_classifier("cnn-6-12", classes=3, height=16, width=16)
    none = torch.zeros(2, dtype=torch.long)
    found = classifier.activations(torch.rand(2, 3, 16, 16), none, none)
    assert found.embedding.shape == (2, 12)
    torch.testing.assert_close(found.embedding, found.feats[-1].mean(dim=(2, 3)))


def test_a_head_that_is_a_1x1_convolution_of_a_pooled_map_is_found() -> None:
    """As timm's ResNetV2 ends; the squeeze of an excitation is one too, but not the last."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=2, padding=1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Conv2d(6, 6, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 3, 1),
        torch.nn.Flatten(),
    )
    classifier = Classifier(network, "own", height=16, width=16)
    assert classifier.layers.head == "4"
    images, none = torch.rand(2, 3, 16, 16), torch.zeros(2, dtype=torch.long)
    found = classifier.activations(images, none, none)
    assert found.embedding.shape == (2, 6)
    torch.testing.assert_close(found.logits, classifier(images))
    network.append(torch.nn.ReLU())  # now its outputs are no logits
    with pytest.raises(DistillError, match="ends in no linear layer"):
        Classifier(network, "own", height=16, width=16)


def test_resnet50v2_of_timm_is_the_published_network_and_can_be_learned_from() -> None:
    pytest.importorskip("timm", reason="resnet50v2 is timm's")
    classifier = build_classifier("resnet50v2", classes=2, height=64, width=64)
    assert classifier.parameter_count() == 23_504_450
    assert classifier.layers.head == "head.fc"
    assert classifier.layers.dim == 2048
    assert class_pair(classifier, classifier.layers, 8).classes == 2


def test_a_student_with_subclasses_is_published_with_one_logit_per_class() -> None:
    classifier: Classifier = build_classifier("cnn-6-12", classes=3, height=16, width=16, subclasses=2)
    images, none = torch.rand(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)
    raw = classifier.activations(images, none, none).logits
    assert raw.shape == (4, 6)
    expected = raw.softmax(1).reshape(4, 3, 2).sum(2)
    torch.testing.assert_close(classifier(images).softmax(1), expected)


@pytest.mark.parametrize("own_dropout", [True, False])
def test_sub_teachers_vary_but_their_mean_is_near_the_whole(own_dropout: bool) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)]
    if own_dropout:
        layers.insert(3, torch.nn.Dropout(0.2))
    classifier = Classifier(torch.nn.Sequential(*layers), "dropping", height=32, width=32)
    precision = Precision(torch.device("cpu"))
    teacher = FrozenTeacher(classifier, precision, sha256="")
    many = SubTeachers(teacher, count=200, dropout=0.2, temperature=4.0)
    none = torch.zeros(4, dtype=torch.long)
    batch = Batch(torch.rand(4, 3, 32, 32), none, none, view=0)
    first, second, whole = many(batch).logits, many(batch).logits, teacher(batch).logits
    assert not torch.equal(first, second)
    torch.testing.assert_close((first / 4).softmax(1), (whole / 4).softmax(1), rtol=0.03, atol=0.003)
    assert torch.equal(teacher(batch).logits, whole)  # asleep again


def test_a_teacher_answers_in_evaluation_and_learns_nothing(colours: Path) -> None:
    """Batch norm and dropout would betray a teacher in training, and move its statistics."""
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)]
    layers += [torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(4, 3)]
    precision = Precision(torch.device("cpu"))
    teacher = FrozenTeacher(
        Classifier(torch.nn.Sequential(*layers), "norms", height=16, width=16), precision, sha256=""
    )
    student = build_classifier("cnn-6-12", classes=3, height=16, width=16)
    lesson = Lesson(teacher, teacher.classifier.layers, {"kd": 1.0, "at": 1.0, "crd": 1.0}, 4.0)
    learner = Taught(student, [lesson], balance=0.5, train_size=36).train()
    pixels = Pixels(open_image_folder(colours).train, Frame(16, 16))
    images = TrainingImages(pixels, Augmentation("none", 0, len(pixels)), 0, 0, precision)
    before = {key: value.clone() for key, value in teacher.classifier.network.state_dict().items()}
    for batch in images.epoch(0, 8):
        total(learner(batch)).backward()
        found = teacher(batch)
        assert torch.equal(found.logits, teacher(batch).logits)
        assert not any(part.requires_grad for part in (found.logits, found.embedding, *found.feats))
    assert all(torch.equal(value, before[key]) for key, value in teacher.classifier.network.state_dict().items())
    assert all(p.grad is None for p in teacher.classifier.parameters())
    held = {id(p) for p in learner.parameters()}
    assert not any(id(p) in held for p in teacher.classifier.parameters())


def test_networks_without_feature_maps_are_refused_where_maps_are_compared() -> None:
    layers = [torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)]
    flat = Classifier(torch.nn.Sequential(*layers), "flat", height=16, width=16)
    teacher = FrozenTeacher(flat, Precision(torch.device("cpu")), sha256="")
    student = build_classifier("cnn-6-12", classes=3, height=16, width=16)
    for name in ("at", "fitnets", "cwd"):
        with pytest.raises(DistillError, match="cnn-6-12 has 2 feature maps and its teacher 0"):
            Taught(student, [Lesson(teacher, flat.layers, {name: 1.0}, 4.0)], balance=0.5, train_size=36)
    with pytest.raises(DistillError, match="feature maps"):
        FriendlyTeacher(flat, student, branch_kl=3.0, branch_ce=1.0)
    with pytest.raises(DistillError, match="feature maps"):
        FeatureTaught(student, [teacher], [flat.layers], weight=1.0, balance=0.5, temperature=4.0)
    Taught(student, [Lesson(teacher, flat.layers, {"kd": 1.0, "rkd": 1.0}, 4.0)], balance=0.5, train_size=36)


def test_remembered_answers_are_those_the_teacher_gives(colours: Path) -> None:
    precision = Precision(torch.device("cpu"))
    pixels = Pixels(open_image_folder(colours).train, Frame(16, 16))
    images = TrainingImages(pixels, Augmentation("crop+flip", 0, len(pixels)), 0, 2, precision)
    teacher = FrozenTeacher(build_classifier("cnn-6-12", classes=3, height=16, width=16), precision, sha256="")
    answers = Answers(teacher, images, maps=True, folder=None)
    for epoch in range(4):
        batches = list(images.epoch(epoch, 8))
        assert {batch.view for batch in batches} == {epoch % 2}
        for batch in batches:
            known, asked = answers(batch), teacher(batch)
            torch.testing.assert_close(known.logits, asked.logits, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(known.feats[-1], asked.feats[-1], rtol=1e-5, atol=1e-6)
            assert torch.equal(known.indices, batch.indices)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("cnn-6-12", (6, 12)), ("resnet18", (64, 128, 256, 512)), ("convnext_tiny", (96, 192, 384, 768))],
)
def test_maps_are_the_last_of_each_resolution_and_never_channels_last(name: str, channels: tuple[int, ...]) -> None:
    layers = build_classifier(name, classes=3, height=64, width=64).layers
    assert layers.channels == channels
