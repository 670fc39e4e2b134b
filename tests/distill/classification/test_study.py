"""Data, augmentation, and the study that compares methods with none."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="distillation needs the [train] extra")
pytest.importorskip("ultralytics", reason="distillation needs the [train] extra")
pytest.importorskip("scipy", reason="the study's tests need scipy, which comes with the [train] extra")

from PIL import Image  # noqa: E402

from distill.classification import study  # noqa: E402
from distill.classification.augment import Augmentation, epoch_order  # noqa: E402
from distill.classification.folders import open_image_folder  # noqa: E402
from distill.classification.pixels import Frame, Pixels  # noqa: E402
from distill.classification.sources import open_data  # noqa: E402
from distill.study_section import write_section  # noqa: E402
from distill.study_statistics import compare, spread  # noqa: E402


def test_an_image_is_augmented_by_its_seed_view_and_position_alone() -> None:
    pixels = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    indices = torch.tensor([4, 0, 9, 2, 7, 5])
    whole = Augmentation("crop+flip", 3, 10)(pixels, indices, 5)
    fresh = Augmentation("crop+flip", 3, 10)
    fresh(pixels, indices, 4)
    for row in range(6):
        assert torch.equal(fresh(pixels[row : row + 1], indices[row : row + 1], 5)[0], whole[row])
    assert not torch.equal(Augmentation("crop+flip", 3, 10)(pixels, indices, 6), whole)
    assert not torch.equal(Augmentation("crop+flip", 4, 10)(pixels, indices, 5), whole)


def test_augmentation_is_a_padded_window_and_its_mirror_image() -> None:
    image = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(1, 3, 8, 8)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    windows = [padded[0, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    possible = [*windows, *(w.flip(2) for w in windows)]
    augmentation = Augmentation("crop+flip", 0, 1)
    seen = set()
    for view in range(200):
        found = augmentation(image, torch.tensor([0]), view)[0]
        matches = [n for n, w in enumerate(possible) if torch.equal(w, found)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert seen == set(range(18))


def test_every_epoch_visits_every_image_once_in_an_order_of_its_own() -> None:
    first, second = epoch_order(50, 1, 0), epoch_order(50, 1, 1)
    assert sorted(first.tolist()) == list(range(50))
    assert not torch.equal(first, second)
    assert torch.equal(first, epoch_order(50, 1, 0))
    assert not torch.equal(first, epoch_order(50, 2, 0))


def test_large_sets_are_decoded_on_demand_to_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(3):
                pixels = random.integers(0, 256, (20 + index, 30, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{index}.png")
    split, frame = open_image_folder(tmp_path).train, Frame(12, 12, "crop", 14)
    decoded = Pixels(split, frame)
    monkeypatch.setattr("distill.classification.pixels._IN_MEMORY_BYTES", 0)
    for workers in (0, 1):
        on_demand = Pixels(split, frame, workers=workers)
        assert decoded.in_memory
        assert not on_demand.in_memory
        order = torch.tensor([5, 0, 3, 1])
        for (a, x), (b, y) in zip(decoded.batches(order, 3), on_demand.batches(order, 3), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(x, y)


def test_cropping_resizes_the_short_side_and_takes_the_centre(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 255  # the middle half of the width
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    found = Frame(16, 16, "crop", 20).read(tmp_path / "wide.png")
    assert found.shape == (16, 16, 3)
    assert found.min() == 255
    row = Frame(16, 16).read(tmp_path / "wide.png")[0, :, 0].tolist()
    assert row[:3] + row[5:11] + row[13:] == [0] * 3 + [255] * 6 + [0] * 3
    assert 0 < row[3] < row[4] < 255, "antialiased: a fifth of each neighbour's pixels counts"


def test_a_named_set_is_written_once_as_plain_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = open_data("shapes")
    assert first.root == (tmp_path / "runs" / "data" / "shapes")
    assert first.names == ("bar", "cross", "disc", "ring")
    assert (len(first.train.files), len(first.val.files)) == (256, 64)
    stamp = first.train.files[0].stat().st_mtime_ns
    again = open_data("shapes")
    assert again.train.sha256 == first.train.sha256
    assert again.train.files[0].stat().st_mtime_ns == stamp


def test_digits_come_from_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    data = open_data("digits")
    assert (len(data.train.files), len(data.val.files), len(data.names)) == (1347, 450, 10)


def test_a_comparison_is_the_paired_t_test_by_its_formula() -> None:
    method, baseline = {0: 0.52, 1: 0.55, 2: 0.57, 3: 0.9}, {0: 0.50, 1: 0.51, 2: 0.54}
    result = compare(method, baseline)
    assert result is not None
    assert result.seeds == 3  # those that both have
    assert result.mean == pytest.approx(3.0)
    assert result.deviation == pytest.approx(1.0)
    assert (result.low, result.high) == (pytest.approx(2.0), pytest.approx(4.0))
    t = 3.0 / (1.0 / math.sqrt(3))
    # Student's t with 2 degrees of freedom has a closed form.
    assert result.t_p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert result.wilcoxon_p == pytest.approx(2 / 2**3)
    assert result.words == "helped"


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([0.1, 3.0, 0.2], "better in every seed, not beyond chance"),
        ([-0.1, -3.0, -0.2], "worse in every seed, not beyond chance"),
        ([-1.0, 2.0, 0.5], "no difference shown"),
        ([-1.0, -1.1, -0.9], "hurt"),
        ([1.0], "one seed says nothing"),
        ([0.0, 0.0, 0.0], "no difference shown"),
    ],
)
def test_the_words_claim_no_more_than_the_test(differences: list[float], words: str) -> None:
    baseline = dict.fromkeys(range(len(differences)), 0.5)
    result = compare({s: 0.5 + d / 100 for s, d in enumerate(differences)}, baseline)
    assert result is not None
    assert result.words == words


def test_spread_gives_mean_deviation_and_range() -> None:
    assert spread({0: 0.5, 1: 0.52, 2: 0.54}) == "52.00 ± 2.00 (50.00 to 54.00)"
    assert spread({0: 0.5}) == "50.00 (50.00 to 50.00)"


def test_a_section_is_replaced_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Heading\n\nwords\n")
    write_section(page, "one", "first")
    write_section(page, "two", "second")
    write_section(page, "one", "third \\1")
    text = page.read_text()
    assert text.startswith("# Heading\n\nwords\n")
    assert "first" not in text
    assert text.index("third \\1") < text.index("second")


def test_a_study_writes_paired_rows_goes_on_and_trains_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--data", "shapes", "--teacher", "cnn-4-8", "--student", "cnn-2-4", "--epochs", "2", "--batch", "64"]
    flags += ["--seeds", "2", "--set", "views=2", "--out", "out", "--report", "docs/results/page.md"]
    monkeypatch.setattr(study, "run_tasks", _in_this_process)
    assert study.main([*flags, "--methods", "none", "kd", "extractive"]) == 0
    page = Path("docs/results/page.md").read_text()
    rows = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert {"none", "kd", "extractive*"} <= rows.keys()
    assert "extractive: Kobayashi 2022 second hand: after two public reimplementations, not the paper itself" in page
    assert "Teacher `cnn-4-8`" in page
    stamps = {path: path.stat().st_mtime_ns for path in Path("out").rglob("record.json")}
    assert len(stamps) == 8
    assert study.main([*flags, "--methods", "none", "kd", "extractive"]) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("record.json")} == stamps
    assert study.main([*flags, "--experiment", "eskd", "--section", "eskd", "--keep", "1+2"]) == 0
    text = Path("docs/results/page.md").read_text()
    assert "../images/eskd.png" in text
    assert Path("docs/images/eskd.png").stat().st_size > 5_000
    takd = ["--experiment", "takd", "--section", "takd", "--teacher", "cnn-3-6", "cnn-4-8"]
    assert study.main([*flags, *takd]) == 0
    assert "cnn-4-8 → cnn-3-6" in Path("docs/results/page.md").read_text()
    capsys.readouterr()
    assert study.main([*flags, "--methods", "none", "--epochs", "3"]) == 1
    assert "other settings" in capsys.readouterr().err


def _in_this_process(tasks: list[study.Task], out: Path, jobs: int) -> None:
    from distill.classification import study_tasks

    for task in tasks:
        if study_tasks.completed(task, out) is None:
            study_tasks._run_task(task, out)
