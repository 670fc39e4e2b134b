"""Files are replaced whole or stay as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.whole import write_whole


def test_a_write_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_whole(path, "first")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")  # half of a character: the file is open by then
    assert path.read_text() == "first"
    write_whole(path, "second")
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]
