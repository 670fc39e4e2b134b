"""How a teacher runs: chosen by measurement, recorded, compiled or smaller on request, and always the same teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.errors import DistillError
from distill.losses import LOSSES, Activations, HeadPair
from distill.teacher import Teacher, load_weights
from distill.teacher_options import TeacherOptions
from distill.teacher_running import RECORD_FILE, run_teachers
from distill.teacher_speed import DTYPES, PRECISIONS, Layout, SpeedRecord, candidates, fastest

CPU = torch.device("cpu")
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SLOW, QUICK = Layout("fp32"), Layout("bf16", True)


@pytest.fixture
def running(toy_teacher: Path, tmp_path: Path) -> Callable[..., Any]:
    """The toy teacher as a training runs it."""

    def build(**options: Any) -> Any:
        trainer = SimpleNamespace(device=CPU, amp=False, save_dir=tmp_path)
        return run_teachers([load_weights(toy_teacher, "teacher")], trainer, TeacherOptions(**options))[0]

    return build


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], None]:
    """Lets each layout take the seconds given by its name."""

    def pretend(seconds: dict[str, float]) -> None:
        monkeypatch.setattr("distill.teacher_speed._seconds", lambda model, images, layout: seconds[layout.name])

    return pretend


def test_the_quickest_layout_is_taken_if_it_is_clearly_quicker(measured: Callable[[dict[str, float]], None]) -> None:
    model = torch.nn.Conv2d(3, 4, 1)
    measured({"fp32": 1.0, "bf16 channels-last": 0.5})
    chosen = fastest(model, IMAGES, [SLOW, QUICK])
    assert (chosen.precision, chosen.channels_last) == ("bf16", True)
    assert chosen.seconds == {"fp32": 1.0, "bf16 channels-last": 0.5}
    assert chosen.images == (2, 3, 64, 64)
    measured({"fp32": 1.0, "bf16 channels-last": 0.95})
    assert fastest(model, IMAGES, [SLOW, QUICK]).name == "fp32"
    assert model.weight.dtype == torch.float32


def test_a_teacher_follows_the_students_precision_and_tries_bfloat16_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distill.teacher_speed.multiplies_bfloat16", lambda: True)
    names = [one.name for one in candidates(CPU, "fp32", "auto")]
    assert names == ["fp32", "fp32 channels-last", "bf16", "bf16 channels-last"]
    assert [one.name for one in candidates(CPU, "bf16", "auto")] == ["bf16", "bf16 channels-last"]
    assert [one.name for one in candidates(CPU, "fp32", "fp32")] == ["fp32", "fp32 channels-last"]
    for asked in PRECISIONS[4:]:  # those that name the memory format
        assert [one.option for one in candidates(CPU, "fp32", asked)] == [asked]
    monkeypatch.setattr("distill.teacher_speed.multiplies_bfloat16", lambda: False)
    assert {one.precision for one in candidates(CPU, "fp32", "auto")} == {"fp32"}
    assert {one.precision for one in candidates(torch.device("cuda"), "fp16", "auto")} == {"fp16"}


def test_the_choice_is_recorded_and_a_resumed_run_does_not_choose_anew(
    running: Callable[..., Any], measured: Callable[[dict[str, float]], None], tmp_path: Path
) -> None:
    measured({"fp32": 1.0, "fp32 channels-last": 0.2})
    teacher = running(precision="fp32")
    teacher(IMAGES)
    assert teacher.layout.name == "fp32 channels-last"
    assert json.loads((tmp_path / RECORD_FILE).read_text())["0 cpu"]["channels_last"] is True
    measured({"fp32": 0.1, "fp32 channels-last": 9.0})
    again = running(precision="fp32")
    again(IMAGES)
    assert again.layout.name == "fp32 channels-last"
    SpeedRecord(tmp_path / RECORD_FILE).write(1, "cpu", QUICK)
    assert SpeedRecord(tmp_path / RECORD_FILE).read(0, "cpu") == teacher.layout
    assert SpeedRecord(tmp_path / RECORD_FILE).read(0, "cuda") is None


@pytest.mark.parametrize("layout", [Layout("fp32", True), Layout("bf16"), Layout("bf16", True)])
def test_every_layout_gives_the_same_answers_within_its_precision(toy_teacher: Path, layout: Layout) -> None:
    exact, other = (Teacher(load_weights(toy_teacher, "teacher"), device=CPU) for _ in range(2))
    other.run_as(layout.dtype, layout.memory_format)
    expected, answer = exact(IMAGES), other(IMAGES)
    assert answer.scores.dtype == DTYPES[layout.precision]
    tolerance = 1e-4 if layout.precision == "fp32" else 0.05
    for ours, theirs in zip((answer.scores, *answer.feats), (expected.scores, *expected.feats), strict=True):
        assert float((ours.float() - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


def test_torch_compile_gets_the_network_and_its_failure_is_one_line(
    running: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = running(precision="fp32")(IMAGES)
    seen: list[Any] = []

    def compile_eagerly(model: Any) -> Any:
        seen.append(model)
        return lambda images: model(images)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    teacher = running(precision="fp32", compiled=True)
    assert torch.allclose(teacher(IMAGES).scores, expected.scores, atol=1e-5)
    assert seen == [teacher.model]

    def fail(images: Any) -> Any:
        raise RuntimeError("no C++\ncompiler found")

    monkeypatch.setattr(torch, "compile", lambda model: fail)
    with pytest.raises(DistillError, match=r"--teacher-compile failed \(RuntimeError: no C\+\+ compiler found\)"):
        running(precision="fp32", compiled=True)(IMAGES)


def test_a_smaller_teacher_sees_smaller_images_and_teaches_features_at_its_own_size(
    running: Callable[..., Any],
) -> None:
    whole, small = running(precision="fp32"), running(precision="fp32", imgsz=32)
    big = torch.rand(1, 3, 64, 64)
    assert [f.shape[2] for f in whole(big).feats] == [8, 4, 2]
    assert [f.shape[2] for f in small(big).feats] == [4, 2, 1]
    student = Activations(torch.empty(0), torch.empty(0), tuple(torch.randn(1, 8, n, n) for n in (8, 4, 2)))
    for name in ("cwd", "fitnets", "mimic", "at", "pkd", "mgd", "fgd", "rkd", "scored"):
        loss = LOSSES[name](HeadPair((8, 8, 8), (128, 256, 512), 16), 1.0)
        assert bool(loss(student, small(big)).isfinite()), name
