"""How strongly the teacher is heard, epoch by epoch."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("ultralytics", reason="distillation needs the [train] extra")

from distill import yolo
from distill.errors import DistillError
from distill.schedules import parse_schedule


def test_constant_is_one_in_every_epoch() -> None:
    assert [parse_schedule("constant").factor(e, 10) for e in (0, 5, 9)] == [1.0, 1.0, 1.0]


def test_cosine_falls_from_one_through_a_half_to_almost_nothing() -> None:
    cosine = parse_schedule("cosine")
    assert cosine.factor(0, 100) == 1.0
    assert cosine.factor(50, 100) == pytest.approx(0.5)
    assert 0 < cosine.factor(99, 100) < 0.001


def test_stop_is_zero_in_exactly_the_last_epochs() -> None:
    assert [parse_schedule("stop:2").factor(e, 5) for e in range(5)] == [1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("text", ["constant", "cosine", "stop:20"])
def test_a_schedule_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_schedule(text)) == text


@pytest.mark.parametrize("text", ["", "linear", "stop", "stop:0", "stop:-1", "stop:1.5", "cosine:3"])
def test_anything_else_is_refused_with_what_is_known(text: str) -> None:
    with pytest.raises(DistillError, match="expected constant, cosine, or stop:N"):
        parse_schedule(text)


def test_the_losses_of_a_run_fade_as_scheduled_and_their_columns_stay(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert yolo.main(arguments(tmp_path / "run", "--losses", "response=0.5,ld=0.5", "--schedule", "stop:2")) == 0
    with (tmp_path / "run" / "train" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    heard = [float(row["train/kd_response"]) for row in rows]
    assert [value > 0 for value in heard] == [True, True, False, False]
    assert heard[2:] == [0.0, 0.0]
