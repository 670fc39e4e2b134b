"""The float student itself as an engine: the reference that bundles are held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.bundle import InputSpec, Manifest
from deploy.graph import Graph
from deploy.runtime.engine import check_pixels


class TorchEngine:
    """A loaded student that runs as a bundle's engine does."""

    def __init__(self, graph: Graph, input_spec: InputSpec) -> None:
        """Run `graph` on pixels of `input_spec`'s size; its layout and dtype are the bundle's own affair."""
        self._graph = graph
        self._input = input_spec

    def infer(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        """Run one image; see `deploy.runtime.Engine.infer`."""
        check_pixels(pixels, self._input)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            outputs = self._graph.network(images)
        return tuple(as_cells(output) for output in outputs)

    def facts(self) -> Mapping[str, Any]:
        """Library, version, threads, precision asked."""
        return {
            "library": "torch",
            "version": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "precision_asked": "fp32",
        }

    def close(self) -> None:
        """Nothing to free: the graph belongs to the caller."""


def reference_manifest(graph: Graph, imgsz: int) -> Manifest:
    """A manifest that describes the float student itself, on square input of `imgsz` pixels."""
    return Manifest(
        engine="torch",
        precision="fp32",
        files={},
        model_file="",
        input=graph.input_spec("images", imgsz),
        outputs=graph.outputs,
        reg_max=graph.reg_max,
        class_names=graph.class_names,
        student={},
        tools={},
        task=graph.task,
    )


def as_cells(output: torch.Tensor) -> NDArray[np.float32]:
    """A raw output (1, channels, h, w) or (1, channels) as `Engine.infer` gives it: (cells, channels)."""
    if output.ndim == 2:
        return np.asarray(output.numpy())
    return np.asarray(output[0].permute(1, 2, 0).reshape(-1, output.shape[1]).numpy())
