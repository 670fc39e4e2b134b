"""What engines answer where the runtime that they need is missing or does not fit."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from deploy.bundle import Bundle, InputSpec, Manifest
from deploy.errors import EngineNotInstalledError
from deploy.runtime import load_engine
from deploy.runtime.engines import tflite

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "ai-edge-litert", "ncnn": "ncnn"}


def _bundle(engine: str) -> Bundle:
    manifest = Manifest(
        engine=engine,
        precision="fp32",
        files={},
        model_file="model",
        input=InputSpec("pixels", 64, 64),
        outputs=(),
        reg_max=16,
        class_names=("cell",),
        student={},
        tools={},
    )
    return Bundle(Path("bundle"), manifest)


@pytest.mark.parametrize("engine", PACKAGES)
@pytest.mark.parametrize(("said", "shown"), [("no shared\nobject", "no shared object"), ("", "ImportError")])
def test_a_runtime_that_cannot_be_imported_is_named_with_the_reason(
    engine: str, said: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = PACKAGES[engine].replace("-", "_")
    importlib.import_module(f"deploy.runtime.engines.{engine}")
    _refuse_import(monkeypatch, (package, "tflite_runtime"), said)
    with pytest.raises(EngineNotInstalledError) as caught:
        load_engine(_bundle(engine), threads=1)
    message = str(caught.value)
    assert message.startswith(f"bundle needs {PACKAGES[engine]}, which cannot be imported (")
    assert shown in message
    assert "\n" not in message
    assert message.endswith(f": pip install {PACKAGES[engine]}")


@pytest.mark.parametrize("numpy_version", ["2.0.0", "2.4.6", "10.0.0rc1"])
def test_tflite_runtime_with_numpy_2_is_refused_before_it_breaks(
    numpy_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _only_tflite_runtime(monkeypatch)
    monkeypatch.setattr(np, "__version__", numpy_version)
    with pytest.raises(EngineNotInstalledError) as caught:
        load_engine(_bundle("tflite"), threads=1)
    assert str(caught.value) == (
        f"tflite-runtime needs numpy < 2, this Python has numpy {numpy_version}: pip install 'numpy<2'"
    )


def test_tflite_runtime_with_numpy_1_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = _only_tflite_runtime(monkeypatch)
    monkeypatch.setattr(np, "__version__", "1.26.4")
    assert tflite._import_interpreter(_bundle("tflite")) == ("tflite-runtime", runtime)


def _only_tflite_runtime(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    runtime = ModuleType("tflite_runtime.interpreter")

    def find(name: str) -> ModuleType:
        if name == "tflite_runtime.interpreter":
            return runtime
        if name.startswith("ai_edge_litert"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return original(name)

    original = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", find)
    return runtime


def _refuse_import(monkeypatch: pytest.MonkeyPatch, packages: tuple[str, ...], said: str) -> None:
    import builtins

    def check(name: str) -> None:
        if name.split(".")[0] in packages:
            raise ImportError(said)

    statement, function = builtins.__import__, importlib.import_module

    def refusing_statement(name: str, *rest: object, **named: object) -> ModuleType:
        if not (rest and len(rest) > 3 and rest[3]):  # a relative import of another package's own
            check(name)
        return statement(name, *rest, **named)  # type: ignore[arg-type]

    def refusing_function(name: str, package: str | None = None) -> ModuleType:
        check(name)
        return function(name, package)

    monkeypatch.setattr(builtins, "__import__", refusing_statement)
    monkeypatch.setattr(importlib, "import_module", refusing_function)
