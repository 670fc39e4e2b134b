"""The overhead study: real devices on loopback, and a page that says what was met and what was not."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.studies import loopback
from bench.studies.loopback import loopback_devices
from bench.studies.overhead import Timings, main, page
from devices import open_device

MACHINE = {"processor": "Cortex-A76", "cores": 4, "before": {"load_average": [0.1, 0.1, 0.1]}}


def test_every_kind_of_run_is_timed(sshd: object, tiny_bundle: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "overhead.md"
    given = ["--bundle", str(tiny_bundle), "--data", str(tiny_data), "--samples", "2", "--min-seconds", "0"]
    assert main([*given, "--runs", "1", "--devices", "2", "--out", str(out)]) == 0
    text = out.read_text()
    rows = re.findall(r"^\| (.*?) \| (\d+\.\d\d) \|", text, re.M)
    assert [name for name, _ in rows] == [
        "`bench/run.py --device`, the first, which sends everything",
        "`bench/run.py --device`, later",
        "`bench/run.py` started there",
        "the worker alone started there: no score, no report",
        "loopback1",
        "loopback2",
        "`bench/run.py` started there 2 times at the same moment",
        "all at once",
    ]
    seconds = [float(value) for _, value in rows]
    assert min(seconds) > 0.1
    assert float(re.findall(r"Against the worker alone: (\S+)\.\n", text)[0]) == pytest.approx(
        seconds[1] / seconds[3], rel=0.05
    )
    assert "python -m bench.studies.overhead --bundle " in text


def test_the_verdict_follows_from_the_medians_and_is_never_rounded_in_our_favour(tiny_bundle: Path) -> None:
    timings = Timings(
        first=9.0,
        bench=[11.0, 11.0005, 30.0],
        hand=[10.0, 10.0, 10.0],
        worker=[8.0, 8.0, 8.0],
        alone={"a": [5.0, 6.0, 7.0], "b": [8.0, 8.0, 8.0]},
        by_hand=[10.0, 10.0, 10.0],
        together=[11.9, 12.0, 12.1],
        fps_alone={"a": 100.0, "b": 50.0},
        fps_together={"a": 90.0, "b": 45.0},
    )
    assert (timings.hand_ratio, timings.together_ratio) == (pytest.approx(1.10005), pytest.approx(1.2))
    assert timings.alone_ratio == pytest.approx(1.5)
    arguments = argparse.Namespace(bundle=tiny_bundle, threads=1, samples=100, min_seconds=5.0, runs=3)
    text = page(timings, arguments, MACHINE, "the command")
    assert "Against the same run by hand: 1.101; at most 1.1 is asked: NOT met." in text
    assert "All at once against the slowest by hand at once: 1.200; at most 1.2 is asked: met." in text
    assert "Against the slowest device alone: 1.500." in text
    assert "| all at once | 12.00 | 11.90 to 12.10 | 90.0 45.0 |" in text
    assert "Cortex-A76, 4 cores" in text


def test_devices_on_loopback_answer_and_end(sshd: object, tmp_path: Path) -> None:
    with loopback_devices(["one", "two"], tmp_path) as inventory:
        for name in ("one", "two"):
            device = open_device(name, inventory)
            assert device.run(["echo", name], timeout_s=30).stdout == f"{name}\n"
            device.close()
    device = open_device("one", inventory)
    with pytest.raises(Exception, match="Connection refused"):
        device.run(["true"], timeout_s=30)
    device.close()


def test_without_an_sshd_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback, "_SSHD_PLACES", str(tmp_path))
    with pytest.raises(BenchError, match="apt install openssh-server"), loopback_devices(["one"], tmp_path):
        pass


def test_an_existing_page_is_not_overwritten(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text("mine")
    assert main(["--bundle", str(tiny_bundle), "--out", str(tmp_path / "page.md")]) == 1
    assert "already exists" in capsys.readouterr().err
