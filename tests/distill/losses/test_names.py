"""Reading ``--losses``, of a detector and of a classifier."""

from __future__ import annotations

import pytest

from distill.errors import DistillError
from distill.losses import (
    ClassPair,
    HeadPair,
    build_class_losses,
    build_losses,
    parse_class_losses,
    parse_losses,
)


def test_losses_are_read_with_their_weights_in_order() -> None:
    assert parse_losses("ld=0.25, response") == {"ld": 0.25, "response": 1.0}
    assert parse_losses("none") == {}
    pair = HeadPair(student_channels=(5, 6, 7), teacher_channels=(5, 6, 7), reg_max=4)
    assert list(build_losses({"ld": 1.0, "cwd": 1.0}, pair, 1.0)) == ["ld", "cwd"]


def test_a_classifier_has_losses_of_its_own() -> None:
    assert parse_class_losses("kd=0.9,at=1000") == {"kd": 0.9, "at": 1000.0}
    pair = ClassPair((5,), (5,), student_dim=8, teacher_dim=8, classes=3, train_size=20)
    assert list(build_class_losses({"kd": 0.9, "at": 1000.0}, pair, 4.0)) == ["kd", "at"]
    with pytest.raises(DistillError, match="'ld' in --losses: the known ones are kd, dkd"):
        parse_class_losses("ld=1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("crossed=1.0", ("'crossed'", "response, ld, feature", "none")),
        ("", ("''", "response, ld, feature")),
        ("ld=1,ld=2", ("'ld'", "twice")),
        ("ld=heavy", ("'heavy'", "ld=1.0")),
        ("ld=-1", ("'-1'", "above 0")),
        ("ld=nan", ("'nan'", "above 0")),
        ("none,ld=1", ("'none'", "response, ld, feature")),
    ],
)
def test_a_loss_that_makes_no_sense_is_refused_with_what_would(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(DistillError) as refusal:
        parse_losses(text)
    assert all(word in str(refusal.value) for word in words)
    assert "\n" not in str(refusal.value)
