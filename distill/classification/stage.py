"""The files of one stage of training: its exact state between epochs, its history, and what it leaves."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from distill.errors import DistillError
from distill.teacher import file_sha256
from distill.whole import whole_file, write_whole

__all__ = ["Stage"]

_SCHEMA: Final = 1
_STATE, _WEIGHTS, _HISTORY = "state.pt", "weights.pt", "results.csv"


class Stage:
    """A folder with ``state.pt`` while a stage trains and ``weights.pt`` once it is done; every file whole."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is written yet."""
        self.folder = folder

    @property
    def done(self) -> bool:
        """Whether the stage is complete."""
        return (self.folder / _WEIGHTS).is_file()

    @property
    def started(self) -> bool:
        """Whether there is an epoch to go on after."""
        return (self.folder / _STATE).is_file()

    @property
    def weights_path(self) -> Path:
        """Where the trained network's state dict is."""
        return self.folder / _WEIGHTS

    def weights_sha256(self) -> str:
        """SHA-256 of the finished weights."""
        return file_sha256(self.weights_path)

    def read_state(self) -> dict[str, Any]:
        """The state after the last complete epoch."""
        state = read_tensors(self.folder / _STATE)
        if not isinstance(state, dict) or state.get("schema") != _SCHEMA:
            raise DistillError(f"{self.folder / _STATE} is of another version: start again without --resume")
        return state

    def write_state(self, state: Mapping[str, Any], history: Sequence[Mapping[str, float]]) -> None:
        """Write the state after an epoch, and the history beside it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self.folder / _STATE, {"schema": _SCHEMA, **state})
        write_whole(self.folder / _HISTORY, _table(history))

    def keep(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the network as it is after an epoch (counted from 1)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self.kept(epoch), dict(weights))

    def kept(self, epoch: int) -> Path:
        """Where that is."""
        return self.folder / f"epoch-{epoch:03d}.pt"

    def finish(self, weights: Mapping[str, Tensor]) -> None:
        """Write the result; the state, several times as large, goes."""
        write_tensors(self.weights_path, dict(weights))
        (self.folder / _STATE).unlink(missing_ok=True)

    def history(self) -> list[dict[str, float]]:
        """The rows of ``results.csv``."""
        with (self.folder / _HISTORY).open(encoding="utf-8", newline="") as file:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def read_tensors(path: Path) -> Any:
    """Read what :func:`write_tensors` wrote, without executing pickled code.

    Raises:
        DistillError: when it is missing or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DistillError(f"{path} is missing: give the folder of a complete run") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise DistillError(
            f"{path} is damaged or no file of tensors ({type(error).__name__}): copy it again, or train it again"
        ) from error


def write_tensors(path: Path, content: Any) -> None:
    """Write tensors, numbers, strings and containers of them, whole or not at all."""
    with whole_file(path) as partial:
        torch.save(content, partial)


def _table(history: Sequence[Mapping[str, float]]) -> str:
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in history)
    return text.getvalue()
