"""Results kept as files: a folder that grows by one result per run, and the newest ones like a given run.

`DIR/BUNDLE@DEVICE/CREATED-HASH/result.json`, with `detections.npz` or
`classes.npz` beside it. Nothing else is kept: removing a folder
removes a run, copying a folder in adds one, and any folder of results serves as a history.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.compare_likeness import differences, held_back
from bench.compare_sides import group_key
from bench.errors import BenchError
from bench.records import CLASSES_NAME, DETECTIONS_NAME, RESULT_NAME, read_result
from bench.rows import Row, result_row
from deploy.cli import file_name, log, one_line, whole_folder

# Newest like runs taken as the baseline: enough to know the spread, few enough to forget what was changed on purpose.
BASELINE_RUNS = 5


@dataclass(frozen=True)
class Found:
    """What a history holds for one bundle.

    Attributes:
        rows: the newest like runs, oldest first, at most `BASELINE_RUNS`.
        unlike: how many runs of that bundle were left out, by what they differ in.
    """

    rows: tuple[Row, ...]
    unlike: dict[str, int]


def like_runs(history: Path, candidate: Sequence[Row], allowed: Sequence[str] = ()) -> Found:
    """The newest runs of the same bundle (by name, engine and precision) under the same conditions.

    Args:
        history: a folder of results at any depth; it need not exist yet.
        candidate: runs of one bundle; themselves they are never part of the answer.
        allowed: fields that may differ, see `compare_likeness.differences`.
    """
    own = {row.folder.resolve() for row in candidate} | {_fingerprint(row) for row in candidate}
    like: list[Row] = []
    unlike: Counter[str] = Counter()
    for row in _rows(history):
        if group_key(row) != group_key(candidate[0]) or row.folder.resolve() in own or _fingerprint(row) in own:
            continue
        differing = differences([row.result], [one.result for one in candidate], allowed)
        if held_back(row.result):
            unlike["held back while it was measured"] += 1
        elif differing:
            unlike[", ".join(difference.field for difference in differing)] += 1
        else:
            like.append(row)
    like.sort(key=lambda row: (row.result.created, str(row.folder)))
    return Found(tuple(like[-BASELINE_RUNS:]), dict(unlike))


def keep(history: Path, rows: Sequence[Row]) -> list[Path]:
    """Copy results into a history; one that is there already stays as it is.

    Returns:
        The folder of each.

    Raises:
        OSError: it cannot be written.
    """
    kept = []
    for row in rows:
        created = re.sub(r"[^0-9TZ]", "", row.result.created.partition("+")[0])
        folder = history / file_name(f"{row.bundle}@{row.result.device}") / f"{created}-{_fingerprint(row)[:8]}"
        if not folder.exists():
            with whole_folder(folder) as partial:
                (partial / RESULT_NAME).write_text(row.result.to_json(), encoding="utf-8")
                for name in (DETECTIONS_NAME, CLASSES_NAME):
                    if (row.folder / name).is_file():
                        shutil.copyfile(row.folder / name, partial / name)
        kept.append(folder)
    return kept


def _rows(history: Path) -> list[Row]:
    rows = []
    for file in sorted(history.rglob(RESULT_NAME)):
        if any(part.startswith(".") for part in file.relative_to(history).parts):
            continue  # being written, or left by a run that was killed
        try:
            rows.append(result_row(read_result(file), file.parent))
        except BenchError as error:
            log(f"warning: left out: {one_line(error)}")
    return rows


def _fingerprint(row: Row) -> str:
    """The same for a result and its copy."""
    return hashlib.sha256(row.result.to_json().encode("utf-8", "surrogatepass")).hexdigest()
