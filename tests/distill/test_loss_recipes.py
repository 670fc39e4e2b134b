"""Named recipes and files of recipes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("ultralytics", reason="distillation needs the [train] extra")

from distill import yolo
from distill.errors import DistillError
from distill.loss_recipes import known_recipes, read_loss_recipe
from distill.schedules import Schedule


def test_the_recipes_that_are_spoken_of_exist() -> None:
    assert {"damo", "logits", "ppyoloe", "rtmdet", "ultralytics", "default"} <= set(known_recipes())


@pytest.mark.parametrize("name", known_recipes())
def test_every_recipe_says_where_it_is_from(name: str) -> None:
    recipe = read_loss_recipe(name)
    assert recipe.losses
    assert recipe.source


def test_the_recipe_of_damo_is_channel_wise_and_decays_along_a_cosine() -> None:
    recipe = read_loss_recipe("damo")
    assert list(recipe.losses) == ["cwd"]
    assert recipe.schedule == Schedule("cosine")


def test_a_file_is_read_with_all_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('source = "ours"\ntemperature = 2\nschedule = "stop:3"\n[losses]\ncwd = 1.5\nld = 0.25\n')
    recipe = read_loss_recipe(str(path))
    assert (dict(recipe.losses), recipe.temperature, str(recipe.schedule), recipe.source) == (
        {"cwd": 1.5, "ld": 0.25},
        2.0,
        "stop:3",
        "ours",
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("losses = 3", "has no losses"),
        ("[losses]", "has no losses"),
        ("[losses]\ncvd = 1", "unknown loss 'cvd'"),
        ("[losses]\ncwd = -1", "expected a number above 0"),
        ('temperature = "hot"\n[losses]\ncwd = 1', "expected a number above 0"),
        ("temperature = true\n[losses]\ncwd = 1", "expected a number above 0"),
        ('schedule = "soon"\n[losses]\ncwd = 1', "expected constant, cosine, or stop:N"),
        ("loses = 1\n[losses]\ncwd = 1", "the known keys are"),
        ("[losses", "is not TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_what_was_expected(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(DistillError, match=complaint):
        read_loss_recipe(str(path))


def test_an_unknown_name_lists_the_known_ones_and_a_missing_file_is_named() -> None:
    with pytest.raises(DistillError, match=r"unknown recipe 'dammo'.*damo, default, logits, ppyoloe"):
        read_loss_recipe("dammo")
    with pytest.raises(DistillError, match=r"recipe no\.toml cannot be read"):
        read_loss_recipe("no.toml")


def test_a_run_takes_losses_temperature_and_schedule_from_its_recipe_and_flags_come_first(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = tmp_path / "own.toml", tmp_path / "run"
    path.write_text('temperature = 2\nschedule = "cosine"\n[losses]\nresponse = 0.5\n')
    asked = [a if a != "4" or previous != "--epochs" else "1" for previous, a in _pairs(arguments(run))]
    assert yolo.main([*asked, "--recipe", str(path), "--temperature", "3"]) == 0
    recipe = json.loads((run / "recipe.json").read_text())
    assert (recipe["losses"], recipe["temperature"], recipe["schedule"]) == ({"response": 0.5}, 3.0, "cosine")
    capsys.readouterr()
    assert yolo.main(["--resume", str(run), "--recipe", "damo"]) == 1
    assert "--recipe damo contradicts the run" in capsys.readouterr().err


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(["", *words], words, strict=False))
