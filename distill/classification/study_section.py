"""A section of a Markdown page that a study writes again and again, between lines of the reader's own."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["write_section"]


def write_section(page: Path, name: str, text: str) -> None:
    """Replace the section of that name, or add it at the end; the rest of the page stays as it is."""
    begin, end = f"<!-- section {name} -->", f"<!-- end of {name} -->"
    whole = page.read_text("utf-8") if page.is_file() else ""
    block = f"{begin}\n{text.strip()}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    changed = pattern.sub(lambda _: block, whole) if begin in whole else f"{whole.rstrip()}\n\n{block}\n".lstrip()
    page.parent.mkdir(parents=True, exist_ok=True)
    partial = page.with_name(f".{page.name}.partial-{os.getpid()}")
    partial.write_text(changed, "utf-8")
    partial.replace(page)
