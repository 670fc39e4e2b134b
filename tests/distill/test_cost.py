"""The cost study: every training in turns, and ratios that are ratios."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from distill import cost


def test_a_ratio_of_costs_is_that_of_their_means_with_an_interval_around_it() -> None:
    plain, peer = np.array([1.0, 1.2, 0.8, 1.0]), np.array([3.0, 3.2, 2.8, 3.0])
    words = cost._ratio(plain + 1.0 - plain, peer - plain)
    assert words == "0.50 (0.50 to 0.50)"
    noisy = cost._ratio(np.array([2.0, 2.4, 1.6, 2.0]), plain)
    middle, low, high = (float(number) for number in re.findall(r"\d\.\d\d", noisy))
    assert middle == 2.0
    assert low <= middle <= high


def test_every_training_is_stepped_and_the_table_names_them(
    toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Kept\n")
    asked = ["--student", "yolov8n.yaml", "--teachers", "yolov8n.yaml", "--data", str(toy_data), "--imgsz", "64"]
    more = ["--batch", "4", "--rounds", "2", "--warmup", "1", "--threads", "1", "--report", str(page)]
    assert cost.main([*asked, *more]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| yolov8n")]
    assert [line.split("|")[2].strip() for line in table] == list(cost._WORDS.values())
    assert table[0].split("|")[5].strip() == "1"
    assert table[1].split("|")[6].strip() == "1"
    text = page.read_text()
    assert text.startswith("# Kept")
    assert "<!-- section cost -->" in text
    assert "The cache of `yolov8n` takes" in text


def test_an_unknown_teacher_is_refused(toy_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cost.main(["--teachers", "nobody.yaml", "--data", str(toy_data), "--imgsz", "64"]) == 1
    assert "nobody.yaml" in capsys.readouterr().err
