"""Figures that a long study keeps between runs: one JSON file a part, measured once, all of the same inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from deploy.cli import log

_INPUTS_NAME = "inputs.json"


class FiguresFolder:
    """A folder with the parts of one study. Interrupted, the same command goes on where it stopped."""

    def __init__(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        """Open or make it.

        Args:
            folder: where the parts are.
            inputs: what all of them are figures of, such as hashes; JSON.

        Raises:
            BenchError: it holds figures of other inputs, or cannot be read.
        """
        self._folder = folder
        known = self.part(_INPUTS_NAME.removesuffix(".json"))
        if known is None:
            folder.mkdir(parents=True, exist_ok=True)
            self._write(_INPUTS_NAME.removesuffix(".json"), inputs)
            return
        for name in {**known, **inputs}:
            if known.get(name) != inputs.get(name):
                raise BenchError(
                    f"{folder} holds figures of {name} {known.get(name)}, asked for is {inputs.get(name)}: "
                    "remove it or choose another --work"
                )

    def part(self, name: str) -> dict[str, Any] | None:
        """One part; None where it was not measured yet.

        Raises:
            BenchError: the file cannot be read.
        """
        file = self._folder / f"{name}.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise BenchError(f"{file} cannot be read ({error}): remove it, and it is measured again") from error
        if not isinstance(found, dict):
            raise BenchError(f"{file} holds no figures: remove it, and it is measured again")
        return found

    def measured(self, name: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """One part, measured now if it was not before."""
        found = self.part(name)
        if found is not None:
            log(f"{name}: kept from an earlier run ({self._folder / name}.json)")
            return found
        self._write(name, measure())
        return self.part(name) or {}

    def _write(self, name: str, figures: Mapping[str, Any]) -> None:
        partial = self._folder / f".{name}.partial-{os.getpid()}"
        try:
            partial.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
            partial.replace(self._folder / f"{name}.json")
        finally:
            partial.unlink(missing_ok=True)
