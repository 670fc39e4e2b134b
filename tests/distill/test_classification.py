"""``python -m distill.classify``: networks, methods, exact resuming and what a run leaves."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="distillation needs the [train] extra")
pytest.importorskip("torchvision", reason="distillation needs the [train] extra")
pytest.importorskip("ultralytics", reason="distillation needs the [train] extra")

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from distill import classify  # noqa: E402
from distill.classification import publish  # noqa: E402
from distill.classification.augment import Augmentation  # noqa: E402
from distill.classification.classifier import Classifier  # noqa: E402
from distill.classification.course import CourseCnn  # noqa: E402
from distill.classification.folders import open_image_folder  # noqa: E402
from distill.classification.lessons import Answers, Batch, FrozenTeacher, Precision, TrainingImages  # noqa: E402
from distill.classification.methods import METHODS  # noqa: E402
from distill.classification.methods.sub_teachers import SubTeachers  # noqa: E402
from distill.classification.networks import build_classifier  # noqa: E402
from distill.classification.pixels import Frame, Pixels  # noqa: E402
from distill.classification.stage import Stage  # noqa: E402
from distill.losses import CLASS_LOSSES  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
TEACHER, STUDENT = "cnn-12-24", "cnn-6-12"


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An easy image folder: three classes told apart by colour, 16 px; 12 training and 8 test images each."""
    root = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(3)
    for split, count in (("train", 12), ("test", 8)):
        for channel, name in enumerate(("blue", "green", "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 140, (16, 16, 3))
                pixels[..., 2 - channel] += 90
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def arguments(colours: Path) -> Callable[..., list[str]]:
    """Arguments of a small run into a folder: 36 images in batches of 8, which makes 5 steps an epoch."""

    def build(out: Path, *more: str, method: str = "kd", teachers: tuple[str, ...] = (TEACHER,)) -> list[str]:
        taught = [] if method in {"none", "mutual"} else ["--teacher", *teachers]
        common = ["--student", STUDENT, "--data", str(colours), "--method", method, "--device", "cpu"]
        settings = [] if "--set" in more else ["--set", "lr=0.01", "warmup=0"]
        return [*common, *taught, "--epochs", "6", "--batch", "8", "--out", str(out), *settings, *more]

    return build


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish the weights alone: exporting takes most of the time of so small a run, and is tested by itself."""
    monkeypatch.setattr(publish, "export_program", lambda student, path, **size: path.write_bytes(b"not exported"))


@pytest.fixture(scope="session")
def teacher_run(arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher trained by the command, with its weights of two epochs kept."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    flags = ("--student", TEACHER, "--set", "lr=0.01", "teach_epochs=3+6")
    assert classify.main(arguments(out, *flags, method="none")) == 0
    return out


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


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("method", [name for name in METHODS if name != "heterogeneous"])
def test_every_method_learns_an_easy_problem(method: str, arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ("--set", "lr=0.01", "warmup=0", "views=2", "teacher_epochs=4", "hint_epochs=2")
    assert classify.main(arguments(out, *settings, method=method)) == 0
    rows = Stage(out / "training" / "student").history()
    losses = [sum(v for k, v in row.items() if k.startswith("loss_")) for row in rows]
    assert losses[-1] < losses[0]
    described = json.loads((out / "student" / "student.json").read_text())
    assert described["metrics"]["top1"] > 0.5  # a third is chance
    assert described["method"] == method


@pytest.mark.usefixtures("quick_export")
def test_unlike_teachers_teach_together_and_alike_ones_are_refused(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = arguments(tmp_path / "run", method="heterogeneous", teachers=(TEACHER, "cnn-4-16"))
    assert classify.main(flags) == 0
    described = json.loads((tmp_path / "run" / "student" / "student.json").read_text())
    assert [t["name"] for t in described["teachers"]] == [TEACHER, "cnn-4-16"]
    assert classify.main(arguments(tmp_path / "alike", method="heterogeneous")) == 1
    assert "different architectures" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("quick_export")
def test_every_class_loss_can_be_asked_for_by_name(
    arguments: Callable[..., list[str]], teacher_run: Path, tmp_path: Path
) -> None:
    losses = ",".join(f"{name}=0.1" for name in CLASS_LOSSES)
    flags = arguments(tmp_path / "run", "--losses", losses, "--epochs", "1", teachers=(str(teacher_run),))
    assert classify.main(flags) == 0
    row = Stage(tmp_path / "run" / "training" / "student").history()[0]
    assert {k for k in row if k.startswith("loss_")} == {"loss_labels", *(f"loss_{name}" for name in CLASS_LOSSES)}


def test_what_is_published_answers_as_the_trained_network(teacher_run: Path, colours: Path) -> None:
    folder = teacher_run / "student"
    described = json.loads((folder / "student.json").read_text())
    program = torch.export.load(folder / "student.pt2").module()
    classifier = build_classifier(TEACHER, classes=3, height=16, width=16)
    classifier.network.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    for images in (torch.rand(1, 3, 16, 16), torch.rand(5, 3, 16, 16)):
        torch.testing.assert_close(program(images), classifier.eval()(images), rtol=1e-5, atol=1e-5)
    for key, name in (("sha256", "student.pt2"), ("weights_sha256", "weights.pt")):
        assert described["student"][key] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert described["task"] == "classify"
    assert described["schema"] == 1
    assert described["class_names"] == ["blue", "green", "red"]
    assert described["data"]["root"] == str(colours)
    assert (described["data"]["train"], described["data"]["val"]) == ("train", "test")
    assert described["input"] == {"height": 16, "width": 16, "fit": "stretch", "resize": 0}
    assert described["teacher"] is None
    assert described["student"]["parameters"] == classifier.parameter_count()
    right = 0
    for label, name in enumerate(described["class_names"]):
        for path in (colours / "test" / name).iterdir():
            pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float() / 255
            right += int(program(pixels).argmax()) == label
    assert described["metrics"]["top1"] == pytest.approx(right / 24)


def _interrupt_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meet Ctrl-C once so many epochs, of all stages, have been written."""
    write, count = Stage.write_state, [0]

    def write_and_interrupt(self: Stage, *arguments: Any) -> None:
        write(self, *arguments)
        count[0] += 1
        if count[0] == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "write_state", write_and_interrupt)


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize(
    ("method", "after", "settings"),
    [
        ("crd", 3, ("views=2",)),  # its memory is a buffer, and its negatives are drawn
        ("kd", 1, ("ema=0.9", "optimizer=sgd", "lr=0.002")),
        ("sub-teachers", 4, ("holdout=0.2",)),  # the teacher draws too
        ("takd", 8, ()),  # in the middle of the chain
        ("fitnets", 1, ("views=2",)),
    ],
)
def test_an_interrupted_run_goes_on_bit_for_bit(
    method: str,
    after: int,
    settings: tuple[str, ...],
    arguments: Callable[..., list[str]],
    teacher_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [*(("--set", *settings) if settings else ())]
    whole = arguments(tmp_path / "whole", *flags, method=method, teachers=(str(teacher_run),))
    assert classify.main(whole) == 0
    with monkeypatch.context() as patch:
        _interrupt_after(after, patch)
        halved = arguments(tmp_path / "halved", *flags, method=method, teachers=(str(teacher_run),))
        assert classify.main(halved) == 130
    assert f"--resume {tmp_path / 'halved'}" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "halved" / "student").exists()
    torch.manual_seed(99)  # whatever ran before
    assert classify.main(["--resume", str(tmp_path / "halved"), "--device", "cpu"]) == 0
    for file in ("training/student/results.csv", "training/student/weights.pt"):
        ours, theirs = tmp_path / "halved" / file, tmp_path / "whole" / file
        if file.endswith(".csv"):
            assert ours.read_text() == theirs.read_text()
        else:
            a, b = (torch.load(p, weights_only=True) for p in (ours, theirs))
            assert all(torch.equal(a[key], b[key]) for key in b)


@pytest.mark.usefixtures("quick_export")
def test_the_same_seed_trains_the_same_student_and_another_does_not(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    weights = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        assert classify.main(arguments(out, "--seed", str(seed), "--epochs", "2", method="none")) == 0
        weights.append(torch.load(out / "student" / "weights.pt", weights_only=True)["fc.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.usefixtures("quick_export")
def test_methods_start_from_the_same_student_and_see_the_same_images(
    arguments: Callable[..., list[str]], teacher_run: Path, tmp_path: Path
) -> None:
    """At a balance of 0 a teacher says nothing, and the paired baseline must come out exactly."""
    assert classify.main(arguments(tmp_path / "none", method="none")) == 0
    taught = arguments(tmp_path / "kd", "--balance", "0", teachers=(str(teacher_run),))
    assert classify.main(taught) == 0
    one, other = (torch.load(tmp_path / n / "student" / "weights.pt", weights_only=True) for n in ("none", "kd"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.usefixtures("quick_export")
def test_early_stopping_keeps_the_best_held_out_epoch(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    settings = ("--set", "lr=0.02", "holdout=0.25", "patience=2", "warmup=0")
    assert classify.main(arguments(tmp_path / "run", "--epochs", "40", *settings, method="none")) == 0
    held_out = [row["held_out"] for row in Stage(tmp_path / "run" / "training" / "student").history()]
    best = held_out.index(max(held_out))
    assert len(held_out) == best + 3
    assert len(held_out) < 40


@pytest.mark.usefixtures("quick_export")
def test_feature_extraction_moves_the_last_layer_alone_until_fine_tuning(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    moved = {}
    for name, epochs in (("frozen", "2"), ("tuned", "4")):
        out = tmp_path / name
        settings = ("--set", "freeze_epochs=2", "teach_epochs=1+2")
        assert classify.main(arguments(out, "--epochs", epochs, *settings, method="none")) == 0
        stage = Stage(out / "training" / "student")
        first = torch.load(stage.kept(1), weights_only=True)
        last = torch.load(stage.weights_path, weights_only=True)
        moved[name] = {key for key in last if not torch.equal(first[key], last[key])}
    assert moved["frozen"] == {"fc.weight", "fc.bias"}
    assert moved["tuned"] == set(first)


@pytest.mark.usefixtures("quick_export")
def test_an_early_stopped_teacher_is_chosen_without_the_test_images(
    arguments: Callable[..., list[str]], teacher_run: Path, tmp_path: Path
) -> None:
    flags = arguments(
        tmp_path / "run", "--set", "lr=0.01", "teach_epochs=3+6", method="eskd", teachers=(str(teacher_run),)
    )
    assert classify.main(flags) == 0
    kept = {
        hashlib.sha256(Stage(teacher_run / "training" / "student").kept(e).read_bytes()).hexdigest() for e in (3, 6)
    }
    described = json.loads((tmp_path / "run" / "student" / "student.json").read_text())
    assert described["teacher"]["sha256"] in kept
    assert len(list((tmp_path / "run" / "training").glob("probe-*"))) == 2


def test_two_processes_step_as_one_with_the_whole_batch(colours: Path, tmp_path: Path) -> None:
    """Gradients are averaged over two gloo processes with half of each batch: the same steps up to rounding."""
    flags = ["-m", "distill.classify", "--student", STUDENT, "--data", str(colours), "--method", "none"]
    flags += ["--epochs", "2", "--batch", "12", "--device", "cpu", "--set", "optimizer=sgd", "lr=0.01"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    assert classify.main([*flags[2:], "--out", str(tmp_path / "one")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    done = subprocess.run(
        [*launch, *flags, "--out", str(tmp_path / "two")], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("top-1") == 1  # one of them reports
    one, two = (torch.load(tmp_path / n / "student" / "weights.pt", weights_only=True) for n in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-6)


def test_an_ultralytics_classifier_can_teach_and_learn(colours: Path, tmp_path: Path) -> None:
    from ultralytics import __version__
    from ultralytics.nn.tasks import ClassificationModel

    torch.manual_seed(0)
    model = ClassificationModel("yolov8n-cls.yaml", nc=3, verbose=False)
    model.names, model.args = {0: "blue", 1: "green", 2: "red"}, {}
    torch.save({"model": model, "ema": None, "train_args": {}, "version": __version__}, tmp_path / "teacher.pt")
    flags = ["--teacher", str(tmp_path / "teacher.pt"), "--student", "yolov8n-cls.yaml", "--data", str(colours)]
    flags += ["--imgsz", "32", "--epochs", "1", "--batch", "12", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert classify.main([*flags, "--losses", "kd=1,at=10"]) == 0
    program = torch.export.load(tmp_path / "run" / "student" / "student.pt2").module()
    assert program(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_a_real_cifar_sample_is_read_as_it_lies(cifar10_mini: Path) -> None:
    data = open_image_folder(cifar10_mini)
    assert (len(data.train.files), len(data.val.files), len(data.names)) == (5000, 1000, 10)
    assert data.val.name == "test"


def test_the_classifier_runs_in_half_precision_without_breaking_a_loss(
    arguments: Callable[..., list[str]], teacher_run: Path, tmp_path: Path
) -> None:
    settings = ("--set", "amp=bf16", "views=2", "lr=0.01")
    flags = arguments(tmp_path / "run", *settings, "--losses", "kd=1,at=1,crd=0.1", teachers=(str(teacher_run),))
    assert classify.main(flags) == 0
    weights = torch.load(tmp_path / "run" / "student" / "weights.pt", weights_only=True)
    assert all(value.dtype == torch.float32 for value in weights.values())


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


def test_processes_share_every_batch_without_an_image_twice(colours: Path) -> None:
    pixels = Pixels(open_image_folder(colours).train, Frame(16, 16))
    precision = Precision(torch.device("cpu"))
    images = TrainingImages(pixels, Augmentation("none", 0, len(pixels)), 0, 0, precision)
    whole = [batch.indices.tolist() for batch in images.epoch(1, 10)]
    shares = [[b.indices.tolist() for b in images.epoch(1, 10, rank=rank, world=2)] for rank in (0, 1)]
    for one, left, right in zip(whole, *shares, strict=True):
        assert sorted(one) == sorted(left + right)
        assert len(left) == len(right)
