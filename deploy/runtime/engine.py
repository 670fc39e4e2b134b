"""The engine protocol, and how a bundle finds its engine."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import ENGINES, Bundle
from deploy.errors import BundleError, EngineError, EngineNotInstalledError
from deploy.runtime.letterbox import InputBuffer
from deploy.runtime.options import Options, chosen_options
from deploy.runtime.tensors import RawTensor, check_pixels

__all__ = ["Engine", "RawEngine", "check_pixels", "load_engine", "not_installed", "reason"]

MAX_THREADS_PER_PROCESSOR = 4  # more than this is a slip of the keyboard, and starting them may never end


class Engine(Protocol):
    """A compiled model, ready to run. One object serves one thread at a time."""

    def infer(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        """Run the network on one letterboxed image.

        Args:
            pixels: (1, height, width, 3) uint8 RGB of the manifest's input size.

        Returns:
            One float32 array (cells, channels) for each of the manifest's outputs, in its order, cells row by
            row; (1, channels) for an output of layout "NC". The arrays may be views of memory that the next call
            overwrites.

        Raises:
            EngineError: `pixels` is of another shape or type.
        """

    def facts(self) -> Mapping[str, Any]:
        """What runs here: library, version, threads, the precision asked for, and more where the engine tells it."""

    def close(self) -> None:
        """Free the model. The engine cannot be used afterwards."""


class RawEngine(Engine, Protocol):
    """An engine that gives the model's own tensors: nothing is converted that nobody reads."""

    def run(self, pixels: NDArray[np.uint8]) -> tuple[RawTensor, ...]:
        """Run the network on one letterboxed image, as `infer`.

        Returns:
            One tensor for each of the manifest's outputs, in its order, in memory that the next call overwrites.

        Raises:
            EngineError: `pixels` is of another shape or type.
        """

    def own_buffer(self) -> InputBuffer | None:
        """The engine's input to letterbox images into; None if it has none in which pixels could lie.

        Its `pixels`, given to `run`, are neither checked nor copied. They are in the engine's own form, and there is
        one such buffer: it is for whoever makes one image ready and runs it before the next.
        """


def load_engine(bundle: Bundle, threads: int, options: Options | None = None) -> RawEngine:
    """Open a bundle's model with its runtime.

    Args:
        bundle: an opened bundle.
        threads: threads for one inference, from 1 to 4 times the processors of this machine.
        options: engine options by name (see `deploy.runtime.options`); they go before the manifest's
            `engine_options`, and those before the engine's defaults.

    Raises:
        BundleError: the manifest names an engine this version does not know.
        EngineNotInstalledError: the runtime is not importable.
        EngineError: the runtime refuses the model, the model has not the tensors that the manifest names, or
            `threads` or an option is out of range.
    """
    name = bundle.manifest.engine
    if name not in ENGINES:
        raise BundleError(f"{bundle.path} is for engine {name!r}, known are {', '.join(ENGINES)}")
    if threads < 1:
        raise EngineError(f"threads is {threads}, expected at least 1")
    processors = os.cpu_count() or 1
    if threads > MAX_THREADS_PER_PROCESSOR * processors:
        most = MAX_THREADS_PER_PROCESSOR * processors
        raise EngineError(f"threads is {threads}, expected at most {most} on a machine of {processors} processors")
    module = importlib.import_module(f"deploy.runtime.engines.{name}")  # its file has its name
    chosen = chosen_options(name, bundle.manifest.engine_options, options or {})
    return cast(RawEngine, module.load(bundle, threads, chosen))


def not_installed(bundle: Bundle, package: str, error: ImportError) -> EngineNotInstalledError:
    """What to raise where `package`, the runtime of `bundle`, cannot be imported."""
    return EngineNotInstalledError(
        f"{bundle.path} needs {package}, which cannot be imported ({reason(error)}): pip install {package}"
    )


def reason(error: Exception) -> str:
    """What an exception says in one line; its kind, where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
