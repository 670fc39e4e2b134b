"""What engines answer where their runtime is missing or does not fit, and what they ask of it."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from deploy.bundle import Bundle, InputSpec, Manifest
from deploy.errors import EngineNotInstalledError
from deploy.runtime import load_engine
from deploy.runtime.engines import openvino, tflite
from deploy.runtime.options import chosen_options

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "ai-edge-litert", "ncnn": "ncnn", "mnn": "MNN"}


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


@pytest.mark.parametrize(
    ("precision", "asked", "hint"),
    [
        ("int8", "bundle", "f32"),
        ("int8", "bf16", "bf16"),
        ("fp32", "bundle", "f32"),
        ("w8", "bundle", "f32"),
        ("bf16", "bundle", "bf16"),
        ("fp16", "bundle", "f16"),
    ],
)
def test_openvino_is_told_what_to_compute_float_layers_in(precision: str, asked: str, hint: str) -> None:
    options = chosen_options("openvino", {}, {"inference_precision": asked})
    assert openvino.settings(_of(precision), 2, options)["INFERENCE_PRECISION_HINT"] == hint


@pytest.mark.parametrize(
    ("precision", "amx", "users", "read"),
    [
        ("int8", "auto", None, "AVX512_CORE_FP16"),
        ("fp32", "auto", None, None),
        ("bf16", "auto", None, None),
        ("int8", "on", None, None),
        ("fp32", "off", None, "AVX512_CORE_FP16"),
        ("int8", "auto", "AVX2", "AVX2"),
    ],
)
def test_openvino_reads_its_instructions_once_and_the_environment_stays_as_it_was(
    precision: str, amx: str, users: str | None, read: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    if users is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", users)
    seen: list[str | None] = []

    class Core:
        def get_property(self, *_: str) -> list[str]:
            seen.append(os.environ.get("ONEDNN_MAX_CPU_ISA"))
            return []

    package = ModuleType("openvino")
    package.Core = Core  # type: ignore[attr-defined]
    openvino.open_core(package, _of(precision), chosen_options("openvino", {}, {"amx": amx}))
    assert seen == [read]
    assert os.environ.get("ONEDNN_MAX_CPU_ISA") == users


def _of(precision: str) -> Bundle:
    bundle = _bundle("openvino")
    return Bundle(bundle.path, replace(bundle.manifest, precision=precision))


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
