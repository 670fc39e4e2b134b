"""The exact state of a training between two epochs, kept beside ``last.pt``.

ultralytics resumes from half-precision averaged weights and a half-precision optimizer, with fresh random numbers:
good enough to go on, but not the run that was interrupted. This file holds what is missing for that: the live
weights, their average and the optimizer in full precision, the projectors, gradients not yet applied, random
generators, and the images that mosaic draws from. It is read back without executing pickled code.
"""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import distributed, nn
from ultralytics.utils.torch_utils import unwrap_model

from distill.errors import DistillError
from distill.whole import whole_file

__all__ = [
    "STATE_FILE",
    "capture_randomness",
    "capture_state",
    "read_state",
    "restore_gradients",
    "restore_randomness",
    "restore_weights",
    "write_state",
]

STATE_FILE: Final = "state.pt"
_SCHEMA: Final = 1


def capture_state(trainer: Any, projectors: nn.Module, batches_since_step: int) -> dict[str, Any]:
    """Describe a trainer that has just finished and validated an epoch.

    Args:
        trainer: the ultralytics trainer.
        projectors: what the distillation losses learn; may be empty.
        batches_since_step: batches whose gradients are summed but not yet applied.

    Returns:
        Tensors, numbers, strings and containers of them, nothing else.
    """
    parameters = _trained(trainer, projectors)
    return {
        "schema": _SCHEMA,
        "epoch": int(trainer.epoch),
        "finished": bool(trainer.stop),
        "model": unwrap_model(trainer.model).state_dict(),
        "ema": trainer.ema.ema.state_dict(),
        "updates": int(trainer.ema.updates),
        "projectors": projectors.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "best_fitness": None if trainer.best_fitness is None else float(trainer.best_fitness),
        "stopper": {
            "best_fitness": float(trainer.stopper.best_fitness),
            "best_epoch": int(trainer.stopper.best_epoch),
        },
        "batches_since_step": batches_since_step,
        "gradients": [None if p.grad is None else p.grad for p in parameters] if batches_since_step else [],
        **capture_randomness(trainer.train_loader),
    }


def capture_randomness(loader: Any) -> dict[str, Any]:
    """What decides this process's next images: its random generators, and the images that mosaic draws from."""
    return {"random": _generators(), "mosaic": _mosaic_indices(loader)}


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write the state, whole or not at all."""
    with whole_file(path) as partial:
        torch.save(state, partial)


def read_state(path: Path) -> dict[str, Any]:
    """Read a state on the CPU.

    Raises:
        DistillError: when there is none, or it cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DistillError(
            f"nothing to resume: {path} is missing, no epoch was completed; start again without --resume"
        ) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DistillError(f"{path} is damaged ({type(error).__name__}): start again without --resume") from error
    if state.get("schema") != _SCHEMA:
        raise DistillError(f"{path} has schema {state.get('schema')}, expected {_SCHEMA}: start again without --resume")
    return state


def restore_weights(trainer: Any, projectors: nn.Module, state: dict[str, Any]) -> None:
    """Put live weights, their average, projectors and optimizer back in full precision.

    Live weights that were no longer finite are left as they are: ultralytics has by then loaded the average.
    """
    if all(bool(v.isfinite().all()) for v in state["model"].values()):
        unwrap_model(trainer.model).load_state_dict(state["model"])
    trainer.ema.ema.load_state_dict(state["ema"])
    trainer.ema.updates = state["updates"]
    projectors.load_state_dict(state["projectors"])
    trainer.optimizer.load_state_dict(state["optimizer"])


def restore_gradients(trainer: Any, projectors: nn.Module, state: dict[str, Any]) -> None:
    """Put back the gradients that were waiting for the next optimizer step."""
    for parameter, gradient in zip(_trained(trainer, projectors), state["gradients"], strict=False):
        parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)


def restore_randomness(loader: Any, state: dict[str, Any]) -> None:
    """Put random generators and mosaic's recent images back, when images are loaded in this process.

    With loading processes the generators that matter live in those and start afresh: resuming is then statistically
    the same run, not bitwise.
    """
    if loader.num_workers:
        return
    dataset = loader.dataset
    if hasattr(dataset, "buffer") and dataset.cache != "ram":  # all in memory: mosaic draws from every image
        for index in range(len(dataset.ims)):
            dataset.ims[index] = None
        dataset.buffer.clear()
        for index in state["mosaic"]:
            dataset.load_image(index)  # reads the image and appends the index, in the order of the first time
    saved = state["random"]
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(saved["torch"])
    if torch.cuda.is_available() and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])


def _trained(trainer: Any, projectors: nn.Module) -> list[nn.Parameter]:
    return [*unwrap_model(trainer.model).parameters(), *projectors.parameters()]


def _generators() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    one_process = torch.cuda.is_available() and not distributed.is_initialized()  # of several, each has one GPU
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if one_process else [],
    }


def _mosaic_indices(loader: Any) -> list[int]:
    return [int(i) for i in getattr(loader.dataset, "buffer", ())]
