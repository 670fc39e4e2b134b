"""The study of engine options: which values it holds against which, and what it writes about a tiny real bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.studies import engine_options
from bench.studies.engine_options import DEFAULTS, variants
from deploy.runtime.options import OPTIONS


@pytest.mark.parametrize("engine", OPTIONS)
def test_every_other_value_of_every_option_is_a_row_of_its_own(engine: str) -> None:
    rows = variants(engine)
    assert next(iter(rows)) == DEFAULTS
    assert rows[DEFAULTS] == {}
    for name, option in OPTIONS[engine].items():
        met = [options[name] for options in rows.values() if name in options]
        expected = [value for value in option.values or (2,) if value != option.default]
        assert met == ([] if name == "model_cache" else expected)
    assert all(len(options) == 1 for name, options in rows.items() if name != DEFAULTS)


def test_it_writes_a_row_for_each_with_its_time_and_memory_and_overwrites_nothing(
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_options, "OPTIONS", {"onnx": {"memory_arena": OPTIONS["onnx"]["memory_arena"]}})
    (tmp_path / "images").mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (50, 70, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    out = tmp_path / "options.md"
    arguments = ["--bundle", str(make_bundle(tmp_path / "b")), "--images", str(tmp_path / "images"), "--threads", "1"]
    arguments += ["--rounds", "2", "--per-round", "3", "--out", str(out)]
    assert engine_options.main(arguments) == 0
    assert capsys.readouterr().out == f"{out}\n"
    rows = [line.split(" | ") for line in out.read_text(encoding="utf-8").splitlines() if "ONNX Runtime" in line]
    assert [row[:2] for row in rows] == [
        ["| ONNX Runtime FP32 64 px", DEFAULTS],
        ["| ONNX Runtime FP32 64 px", "memory_arena = False"],
    ]
    for row in rows:
        assert float(row[2]) > 0
        assert float(row[4].rstrip(" |")) > 10
    assert rows[0][3] == ""
    assert float(rows[1][3].split()[0]) > 0
    assert "--per-round 3" in out.read_text(encoding="utf-8")
    assert engine_options.main(arguments) == 1
    assert "already exists" in capsys.readouterr().err
