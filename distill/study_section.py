"""A section of a Markdown page that a study writes again and again, between lines of the reader's own."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from distill.whole import write_whole

__all__ = ["processor", "public_command", "write_section"]


def write_section(page: Path, name: str, text: str) -> None:
    """Replace the section of that name, or add it at the end; the rest of the page stays as it is."""
    begin, end = f"<!-- section {name} -->", f"<!-- end of {name} -->"
    whole = page.read_text("utf-8") if page.is_file() else ""
    block = f"{begin}\n{text.strip()}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    changed = pattern.sub(lambda _: block, whole) if begin in whole else f"{whole.rstrip()}\n\n{block}\n".lstrip()
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(page, changed)


def public_command(command: str) -> str:
    """The command with folders of this machine shortened to their last names."""
    return re.sub(r"(?<=[\s=,])/[^\s,]+", _shortened, command)


def processor() -> str:
    """What the processor calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _shortened(match: re.Match[str]) -> str:
    """From ``docs/`` or ``runs/`` on, or else the last two names."""
    path = match.group(0)
    for folder in ("/docs/", "/runs/"):
        if folder in path:
            return path[path.index(folder) + 1 :]
    return "/".join(path.split("/")[-2:])
