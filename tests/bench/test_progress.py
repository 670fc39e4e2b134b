"""Progress of several devices: rewritten in place on a terminal, prefixed lines elsewhere."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable

import pytest

from bench.progress import Board


class Terminal(io.StringIO):
    """What a terminal shows after the sequences that were written to it."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        rows, row = [""], 0
        for piece in re.findall(r"\x1b\[\d*[A-Z]|[\r\n]|[^\x1b\r\n]+", self.getvalue()):
            if piece.endswith("A") and piece.startswith("\x1b"):
                row -= int(piece[2:-1])
                assert row >= 0, "it went above what it had written"
            elif piece == "\x1b[K":
                rows[row] = ""
            elif piece == "\x1b[J":
                rows[row:] = [""]
            elif piece == "\n":
                row += 1
                rows += [""] * (row + 1 - len(rows))
            elif piece != "\r":
                rows[row] = piece
        return [line for line in rows if line]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Puts a terminal of 5 lines of 40 columns before the test; pytest would take away what a fixture put there."""

    def put() -> Terminal:
        made = Terminal()
        monkeypatch.setattr(sys, "stderr", made)
        monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((40, 5)))
        return made

    return put


def test_each_device_has_one_line_that_changes_in_place(terminal: Callable[[], Terminal]) -> None:
    shown = terminal()
    board = Board(["pi4", "pi5"])
    board.show("pi5", "net", "connecting")
    board.show("pi4", "net", "timing", "10%")
    board.show("pi5", "net", "timing", "20%")
    board.show("pi4", "net", "timing", "30%")
    assert shown.screen() == ["net on pi4: timing 30%", "net on pi5: timing 20%"]


def test_what_stays_is_above_the_lines_that_change(terminal: Callable[[], Terminal]) -> None:
    shown = terminal()
    board = Board(["pi4", "pi5"])
    board.show("pi4", "net", "timing", "10%")
    board.show("pi5", "net", "timing", "20%")
    board.log("net on pi4: p50 3 ms", "pi4")
    board.log("warning: hot")
    assert shown.screen() == ["net on pi4: p50 3 ms", "warning: hot", "net on pi5: timing 20%"]
    board.clear()
    assert shown.screen() == ["net on pi4: p50 3 ms", "warning: hot"]


def test_no_line_wraps_and_none_leaves_the_screen(terminal: Callable[[], Terminal]) -> None:
    shown = terminal()
    board = Board([f"pi{index}" for index in range(9)])
    for index in range(9):
        board.show(f"pi{index}", "größe-日本\n" * 9, "timing", "5%")
    screen = shown.screen()
    assert len(screen) == 4
    assert screen[-1] == "… and 6 devices more"
    assert screen[0].endswith("on pi0: timing 5%")
    assert len(screen[0]) < 39  # characters; those of Japan take two columns each


def test_any_thread_may_write(terminal: Callable[[], Terminal]) -> None:
    shown = terminal()
    board = Board([f"pi{index}" for index in range(3)])

    def work(device: str) -> None:
        for percent in range(50):
            board.show(device, "net", "timing", f"{percent}%")
            if percent == 25:
                board.log(f"{device} is half-way")

    threads = [threading.Thread(target=work, args=(f"pi{index}",)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    screen = shown.screen()
    assert sorted(screen[:3]) == [f"pi{index} is half-way" for index in range(3)]
    assert screen[3:] == [f"net on pi{index}: timing 49%" for index in range(3)]


def test_elsewhere_a_line_is_written_for_each_stage_and_not_for_each_percent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    board = Board(["pi4"])
    for percent in range(30):
        board.show("pi4", "net", "timing", f"{percent}%")
    board.show("pi4", "net", "accuracy", "1%")
    board.log("done", "pi4")
    board.clear()
    assert capsys.readouterr().err.splitlines() == ["net on pi4: timing 0%", "net on pi4: accuracy 1%", "done"]
