"""The precision that an engine really executed, operator by operator, and whether it is the one that was asked for.

Only numpy and the engine: it runs wherever a bundle runs.
"""

from __future__ import annotations

import importlib
from typing import cast

import numpy as np

from deploy.bundle import Bundle
from deploy.errors import EngineError
from deploy.runtime.audit.operators import EXECUTED_AS, Executed, Operator
from deploy.runtime.audit.table import audit_table
from deploy.runtime.audit.verdict import Verdict, audit_record, judge
from deploy.runtime.options import Options, chosen_options

__all__ = ["EXECUTED_AS", "Executed", "Operator", "Verdict", "audit_record", "audit_table", "executed", "judge"]

# Engines that tell what they execute; adding one is a file and a line here.
_MODULES = {name: f"deploy.runtime.audit.{name}" for name in ("onnx", "openvino", "tflite", "mnn")}
RUNS = 5


def executed(bundle: Bundle, threads: int, options: Options | None = None, runs: int = RUNS) -> Executed:
    """Open a bundle's model as its engine does, run it on random pixels, and ask the runtime what it executed.

    Args:
        bundle: an opened bundle.
        threads: for one inference.
        options: engine options by name, before the manifest's and the engine's defaults.
        runs: inferences whose times are averaged.

    Raises:
        EngineError: the runtime does not tell, or refuses the model.
        EngineNotInstalledError: the runtime is not importable.
    """
    name = bundle.manifest.engine
    if name not in _MODULES:
        raise EngineError(f"{name} does not tell what it executes; those that do are {', '.join(_MODULES)}")
    module = importlib.import_module(_MODULES[name])
    spec = bundle.manifest.input
    pixels = np.random.default_rng(0).integers(0, 256, (1, spec.height, spec.width, 3), np.uint8)
    chosen = chosen_options(name, bundle.manifest.engine_options, options or {})
    return cast(Executed, module.executed(bundle, threads, chosen, pixels, runs))
