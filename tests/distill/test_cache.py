"""Views that repeat, and teacher outputs that are read back instead of computed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_dataloader, build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import load_checkpoint

from distill import yolo
from distill.losses import LOSSES, Activations, AssignedBoxes, HeadPair
from distill.output_store import OutputStore, make_room, stored_bytes
from distill.teacher_cache import needed_outputs
from distill.teacher_running import RunningTeacher
from distill.views import AugmentedViews, show_views

Arguments = Callable[..., list[str]]
ReadResults = Callable[[Path], list[dict[str, str]]]

SHAPES = ((2, 3), (4,))


@pytest.fixture(scope="module")
def views(toy_data: Path) -> Callable[[], AugmentedViews]:
    """A fresh training set in 3 views, with every augmentation that mixes images."""

    def build() -> AugmentedViews:
        settings = get_cfg(overrides={"imgsz": 64, "mixup": 0.5, "copy_paste": 0.5, "cutmix": 0.3, "degrees": 5.0})
        data = check_det_dataset(str(toy_data))
        return AugmentedViews(build_yolo_dataset(settings, data["train"], 4, data, mode="train"), views=3, seed=7)

    return build


@pytest.fixture
def runs_of_the_teacher(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images given to a teacher, one number a call."""
    seen: list[int] = []
    call = RunningTeacher.__call__

    def count(self: RunningTeacher, images: torch.Tensor, *context: Any) -> Activations:
        seen.append(len(images))
        return call(self, images, *context)

    monkeypatch.setattr(RunningTeacher, "__call__", count)
    return seen


def last_weights(out: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(out / "train" / "weights" / "last.pt")[0].state_dict()
    return state


def test_a_view_repeats_to_the_pixel_whatever_was_loaded_and_drawn_before(views: Callable[[], AugmentedViews]) -> None:
    first, second = views(), views()
    size = len(first)
    wanted = [2 * size + 4, 0 * size + 4, 2 * size + 9]
    once = [first[key] for key in wanted]
    random.seed(123)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for key in (7, 3 * size - 1, 12):
        second[key]
    again = [second[key] for key in reversed(wanted)][::-1]
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after
    for one, other in zip(once, again, strict=True):
        assert torch.equal(one["img"], other["img"])
        assert torch.equal(one["bboxes"], other["bboxes"])
    assert not torch.equal(once[0]["img"], once[1]["img"])
    assert (once[0]["view"], once[0]["image"], once[0]["family"]) == (2, 4, 0)


def test_closing_mosaic_begins_another_family_that_repeats_too(views: Callable[[], AugmentedViews]) -> None:
    one, other = views(), views()
    open_view = one[4]["img"]
    for data in (one, other):
        data.close_mosaic(get_cfg(overrides={"imgsz": 64}))
    other[0]
    assert one[4]["family"] == 1
    assert torch.equal(one[4]["img"], other[4]["img"])
    assert not torch.equal(one[4]["img"], open_view)


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_show_the_views_in_turn_also_when_processes_read_ahead(
    views: Callable[[], AugmentedViews], workers: int
) -> None:
    loader = build_dataloader(views(), batch=4, workers=workers, shuffle=True)
    show_views(loader)
    seen = [[(v, i) for batch in loader for v, i in zip(batch["view"], batch["image"], strict=True)] for _ in range(4)]
    loader.close()
    assert [{view for view, _ in epoch} for epoch in seen] == [{0}, {1}, {2}, {0}]
    assert all(sorted(image for _, image in epoch) == list(range(10)) for epoch in seen)


def test_cached_training_equals_uncached_training_in_the_same_views(
    arguments: Arguments,
    read_results: ReadResults,
    runs_of_the_teacher: list[int],
    interrupt_after: Callable[[int], pytest.MonkeyPatch],
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    common = ("--views", "1", "--losses", "response,ld,cwd", "--set", "close_mosaic=1", "nbs=8")
    assert yolo.main(arguments(tmp_path / "uncached", *common)) == 0
    assert sum(runs_of_the_teacher) == 40  # 4 epochs of 10 images

    runs_of_the_teacher.clear()
    kept = (*common, "--cache", str(cache))
    assert yolo.main(arguments(tmp_path / "cached", *kept)) == 0
    assert sum(n for n in runs_of_the_teacher if n > 1) == 20  # with mosaic and without it, once each
    assert len(list(cache.rglob("*.bin"))) == 20
    for ours, theirs in zip(read_results(tmp_path / "cached"), read_results(tmp_path / "uncached"), strict=True):
        for name in ("train/kd_response", "train/kd_ld", "train/kd_cwd", "train/box_loss"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=2e-3), name

    runs_of_the_teacher.clear()
    entries = sorted(cache.rglob("*.bin"))
    entries[3].write_bytes(entries[3].read_bytes()[:-1] + b"?")  # damaged: made again
    entries[17].write_bytes(b"")
    patch = interrupt_after(2)
    assert yolo.main(arguments(tmp_path / "cut", *kept)) == 130
    patch.undo()
    assert yolo.main(["--resume", str(tmp_path / "cut")]) == 0
    assert sum(n for n in runs_of_the_teacher if n > 1) <= 8  # the batches of the two damaged ones
    assert read_results(tmp_path / "cut") == read_results(tmp_path / "cached")
    one, other = last_weights(tmp_path / "cut"), last_weights(tmp_path / "cached")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_each_loss_reads_no_more_than_is_kept_for_it(head_outputs: Callable[[int], Activations]) -> None:
    student, teacher = head_outputs(0), head_outputs(1)
    for name, build in LOSSES.items():
        if name == "crosskd":
            continue
        kept = needed_outputs([name], 1)
        nothing = torch.empty(0)
        partial = Activations(
            boxes=teacher.boxes if "boxes" in kept else nothing,
            scores=teacher.scores if "scores" in kept else nothing,
            feats=teacher.feats if "feats" in kept else (),
        )
        torch.manual_seed(0)
        loss = build(HeadPair((5, 6, 7), (5, 6, 7), 4), 1.0)
        torch.manual_seed(1)
        whole = loss(student, teacher)
        torch.manual_seed(1)
        assert torch.equal(loss(student, partial), whole), name


def test_an_entry_is_read_as_it_was_written_and_damage_is_noticed(tmp_path: Path) -> None:
    store = OutputStore(tmp_path, {"teacher": "a"}, SHAPES, torch.bfloat16)
    tensors = [torch.randn(2, 3).bfloat16(), torch.randn(4).bfloat16()]
    assert store.read(0, 1, 5) is None
    store.write(0, 1, 5, tensors)
    read = store.read(0, 1, 5)
    assert read is not None
    assert all(torch.equal(a, b) for a, b in zip(read, tensors, strict=True))
    (entry,) = tmp_path.rglob("*.bin")
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    entry.write_bytes(content)
    assert store.read(0, 1, 5) is None
    assert OutputStore(tmp_path, {"teacher": "b"}, SHAPES, torch.bfloat16).read(0, 1, 5) is None


def test_room_is_made_by_forgetting_what_was_used_longest_ago_but_nothing_in_use(tmp_path: Path) -> None:
    tensors = [torch.zeros(2, 3).half(), torch.zeros(4).half()]
    stores = {name: OutputStore(tmp_path, {"teacher": name}, SHAPES, torch.float16) for name in "abcd"}
    for age, store in enumerate(reversed(stores.values())):
        store.write(0, 0, 0, tensors)
        os.utime(store.folder / "outputs.json", (1000 + age, 1000 + age))
    size = stores["a"].entry_bytes
    folders = {name: store.folder for name, store in stores.items()}
    assert stored_bytes(folders["a"]) == size == 32
    for name in "bd":
        stores.pop(name)  # their runs ended; a and c are in use, d is the oldest
    make_room(tmp_path, [folders["a"]], 2 * size)
    assert {name for name, folder in folders.items() if folder.exists()} == {"a", "b", "c"}
    make_room(tmp_path, [folders["a"]], 0)
    assert {name for name, folder in folders.items() if folder.exists()} == {"a", "c"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--cache", "C"), ("--views",)),
        (("--views", "2", "--cache-limit", "1"), ("--cache-limit", "--cache")),
        (("--views", "2", "--cache", "C", "--cache-limit", "0.00001"), ("GB", "--cache-limit")),
        (("--teacher-imgsz", "128"), ("--teacher-imgsz 128", "--imgsz 64")),
        (("--imgsz", "128", "--teacher-imgsz", "64"), ("anchor", "response")),
        (("--losses", "none", "--views", "2"), ("--views", "teacher")),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(
    more: tuple[str, ...],
    words: tuple[str, ...],
    arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(tmp_path / "cache") if value == "C" else value for value in more]
    assert yolo.main(arguments(tmp_path / "run", *given, plain="none" in more)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


@pytest.fixture
def head_outputs() -> Callable[[int], Activations]:
    """Random raw outputs of 2 images: (seed) -> 22 anchors on 3 levels, 3 classes, 4 bins, with assigned boxes."""

    def make(seed: int) -> Activations:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        return Activations(
            boxes=normal(2, 16, 22),
            scores=normal(2, 3, 22),
            feats=tuple(normal(2, c, h, w) for c, h, w in ((5, 4, 4), (6, 2, 2), (7, 1, 2))),
            assigned=AssignedBoxes(normal(2, 4, 22).abs(), normal(2, 22) > 0),
        )

    return make
