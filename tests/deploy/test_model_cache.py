"""Opening a model twice: faster perhaps, never with another result, whatever has become of the cache."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ultralytics", reason="making bundles needs the [train] extra")

from deploy.bundle import Bundle
from deploy.errors import EngineError
from deploy.runtime import load_engine, model_cache

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINES = ("onnx", "openvino")


@pytest.fixture(params=ENGINES)
def bundle(request: pytest.FixtureRequest, bundles: Callable[[str, str], Path]) -> Bundle:
    return Bundle.open(bundles(request.param, "fp32"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _opened(bundle: Bundle, **options: str | int | bool) -> tuple[str, list[np.ndarray]]:
    """The state of the cache, and the outputs for one fixed image."""
    engine = load_engine(bundle, 1, options)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), dtype=np.uint8)
    state, outputs = str(engine.facts()["model_cache"]), list(engine.infer(pixels))
    engine.close()
    return state, outputs


def _same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_second_time_it_opens_what_the_first_left_and_computes_the_same(bundle: Bundle, folder: Path) -> None:
    without, expected = _opened(bundle, model_cache=False)
    assert without == "off"
    assert not folder.exists()
    for state in ("stored", "loaded"):
        met, outputs = _opened(bundle)
        assert met == state
        assert _same(outputs, expected)
    assert len(list(folder.iterdir())) == 1


def test_other_options_open_nothing_that_was_kept_for_these(bundle: Bundle, folder: Path) -> None:
    _opened(bundle)
    other = {"graph_optimization": "basic"} if bundle.manifest.engine == "onnx" else {"hint": "throughput"}
    assert _opened(bundle, **other)[0] == "stored"
    assert len(list(folder.iterdir())) == 2


def test_a_damaged_entry_is_made_anew(bundle: Bundle, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, expected = _opened(bundle)
    (entry,) = folder.iterdir()
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    entry.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        state, outputs = _opened(bundle)
    assert state == "stored"
    assert len(caplog.records) == 1
    assert _same(outputs, expected)
    assert _opened(bundle)[0] == "loaded"


def test_an_entry_that_the_engine_refuses_is_made_anew(bundle: Bundle, folder: Path) -> None:
    _, expected = _opened(bundle)
    (entry,) = folder.iterdir()
    entry.write_bytes(b"no model at all")
    digest = model_cache.sha256_file(entry)
    entry.rename(entry.with_name(f"{entry.stem.partition('-')[0]}-{digest}{entry.suffix}"))
    state, outputs = _opened(bundle)
    assert state == "stored"
    assert _same(outputs, expected)


def test_a_folder_that_cannot_be_used_is_said_once_and_does_no_harm(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGE_DISTILL_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        state, outputs = _opened(bundle)
    assert state == "unusable"
    assert [str(tmp_path / "file") in record.getMessage() for record in caplog.records] == [True]
    assert _same(outputs, _opened(bundle, model_cache=False)[1])


def test_two_processes_at_once_both_open_and_leave_whole_entries(bundle: Bundle, folder: Path) -> None:
    program = (
        "import sys; from deploy.bundle import Bundle; from deploy.runtime import load_engine; "
        "print(load_engine(Bundle.open(sys.argv[1]), 1).facts()['model_cache'])"
    )
    command = [sys.executable, "-c", program, str(bundle.path)]
    running = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    states = {process.communicate(timeout=120)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert states <= {"stored", "loaded"}
    # This process may have opened another bundle first, which decides the instructions that OpenVINO compiles for.
    third = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    assert third.stdout.strip() == "loaded"
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".new-")]


def _has_amx() -> bool:
    facts = Path("/proc/cpuinfo")
    return facts.is_file() and "amx_int8" in facts.read_text(encoding="utf-8")


@pytest.mark.skipif(not _has_amx(), reason="this processor has no AMX")
def test_what_openvino_compiled_for_other_instructions_is_another_entry(
    folder: Path, bundles: Callable[[str, str], Path]
) -> None:
    program = (
        "import sys; from deploy.bundle import Bundle; from deploy.runtime import load_engine; "
        "print(*(load_engine(Bundle.open(path), 1).facts()['model_cache'] for path in sys.argv[1:]))"
    )
    fp32, int8 = (str(bundles("openvino", precision)) for precision in ("fp32", "int8"))
    states = [
        subprocess.run(
            [sys.executable, "-c", program, *paths], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        for paths in ((int8,), (fp32, int8), (int8,), (fp32, int8))
    ]
    assert [one.stdout.split() for one in states] == [["stored"], ["stored", "stored"], ["loaded"], ["loaded"] * 2]
    assert not any("damaged" in one.stderr for one in states)


def test_a_folder_that_may_only_be_read_serves_all_the_same(
    bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = _opened(bundle)

    def refused(path: Path) -> None:
        raise PermissionError(f"read-only file system: {path}")

    monkeypatch.setattr(model_cache.os, "utime", refused)
    state, outputs = _opened(bundle)
    assert state == "loaded"
    assert _same(outputs, expected)


def test_the_entries_used_least_recently_go_first(
    bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache, "MAX_ENTRIES", 2)
    folder.mkdir()
    for age, name in enumerate(["a-1.onnx", "b-1.blob", "c-1.onnx"]):
        (folder / name).write_bytes(b"x")
        model_cache.os.utime(folder / name, (1000 - age, 1000 - age))
    assert _opened(bundle)[0] == "stored"
    assert "a-1.onnx" in {path.name for path in folder.iterdir()}
    assert len(list(folder.iterdir())) == 2


def test_a_model_that_is_no_model_is_refused_all_the_same(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    _opened(bundle)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in bundle.manifest.files:
        (copy / name).write_bytes((bundle.path / name).read_bytes()[:100])
    with pytest.raises(EngineError, match="refuses"):
        _opened(Bundle(copy, bundle.manifest))
    assert len(list(folder.iterdir())) == 1


def test_the_environment_turns_it_off(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_DISTILL_CACHE", "off")
    assert _opened(bundle)[0] == "off"
