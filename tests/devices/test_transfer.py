"""Half a set of files is never taken for a whole one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from devices.transfer import MAGIC, BrokenTransferError, files_below, read_files, write_files


@pytest.fixture
def stream(tmp_path: Path) -> bytes:
    (tmp_path / "one").write_bytes(b"first file")
    (tmp_path / "two").write_bytes(os.urandom(5000))
    buffer = io.BytesIO()
    write_files(buffer, {"one": tmp_path / "one", "deep/two": tmp_path / "two"})
    return buffer.getvalue()


def test_every_shorter_stream_is_refused_and_leaves_nothing(stream: bytes, tmp_path: Path) -> None:
    for length in [*range(0, 300, 7), len(stream) - 5000, len(stream) - 1]:
        with pytest.raises(BrokenTransferError):
            read_files(io.BytesIO(stream[:length]), tmp_path / "there" / "set")
        assert not (tmp_path / "there").exists() or list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize(
    "header",
    [b"{oops", b"\xff\xfe", b"5", b"[5]", b'["one"]', b'[["one", 3]]', b'[["one", "3", "aa"]]', b'[["one", -1, "aa"]]',
     b'[["one", NaN, "aa"]]', b'[[5, 0, "aa"]]', b'[["a\\u0000b", 0, "aa"]]', b'[["one", 0, null]]'],
)  # fmt: skip
def test_a_malformed_list_is_refused_and_leaves_nothing(header: bytes, tmp_path: Path) -> None:
    with pytest.raises(BrokenTransferError, match="the list of files"):
        read_files(io.BytesIO(MAGIC + header + b"\n"), tmp_path / "there" / "set")
    assert not (tmp_path / "there").exists()


def test_a_changed_byte_is_refused_with_the_file_named(stream: bytes, tmp_path: Path) -> None:
    changed = stream[:-1] + bytes([stream[-1] ^ 1])
    with pytest.raises(BrokenTransferError, match=r"'one' arrived with another SHA-256"):
        read_files(io.BytesIO(changed), tmp_path / "there" / "set")
    assert list((tmp_path / "there").iterdir()) == []


def test_the_whole_stream_gives_the_files_back(stream: bytes, tmp_path: Path) -> None:
    read_files(io.BytesIO(stream), tmp_path / "there" / "set")
    found = files_below(tmp_path / "there" / "set")
    assert {name: path.read_bytes() for name, path in found.items()} == {
        "one": b"first file",
        "deep/two": (tmp_path / "two").read_bytes(),
    }


def test_the_one_who_comes_second_keeps_what_is_there(stream: bytes, tmp_path: Path) -> None:
    target = tmp_path / "there" / "set"
    target.mkdir(parents=True)
    (target / "mine").write_bytes(b"first")
    read_files(io.BytesIO(stream), target)
    assert [path.name for path in (tmp_path / "there").rglob("*")] == ["set", "mine"]


def test_a_push_that_died_is_cleared_away_and_one_that_lives_is_not(stream: bytes, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-S", "-c", ""])
    dead.wait()
    abandoned = tmp_path / "there" / f"set.partial-{dead.pid}-0123abcd"
    alive = tmp_path / "there" / f"set.partial-{os.getpid()}-0123abcd"
    other = tmp_path / "there" / f"other.partial-{dead.pid}-0123abcd"
    for folder in (abandoned, alive, other):
        folder.mkdir(parents=True)
    read_files(io.BytesIO(stream), tmp_path / "there" / "set")
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == sorted(["set", alive.name, other.name])


def test_a_file_that_shrinks_while_it_is_sent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shrinking"
    path.write_bytes(b"x" * 10)

    class Shrinking(io.BytesIO):
        def write(self, data: object) -> int:
            path.write_bytes(b"x")
            return 0

    with pytest.raises(BrokenTransferError, match="became shorter"):
        write_files(Shrinking(), {"shrinking": path})
