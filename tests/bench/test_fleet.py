"""`bench/run.py` on several devices at once, behind a real sshd: none waits for another; what was lost is retried."""

from __future__ import annotations

import _thread
import json
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import fleet as fleet_module
from bench.inputs import MeasuredImages
from bench.progress import Board
from bench.records import read_result
from bench.run import main
from deploy.bundle import Bundle
from devices import DeviceError

QUICK = ["--samples", "3", "--min-seconds", "0", "--warmup", "1", "--threads", "1", "--no-accuracy"]
MEASURES = 'case "$1" in *measure.py)'
# Kills the sshd that serves this connection, as a crash of it or a restart of the device would.
KILL_SSHD = (
    "pid=$PPID; while ! grep -q sshd /proc/$pid/comm; do pid=$(cut -d' ' -f4 /proc/$pid/stat); done; "
    "kill -9 $pid; sleep 30"
)

Capture = pytest.CaptureFixture[str]
Fleet = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has its own folder, and a device that was lost is tried again at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fleet_module, "RETRY_AFTER_S", (0.01, 0.01, 0.01))


@pytest.fixture
def fleet(sshd: Any, tmp_path: Path, device_python: str, tiny_bundle: Path, tiny_data: Path) -> Fleet:
    """Writes an inventory of devices, each with shell text that its Python runs first, and gives the arguments."""

    def make(**first: str) -> list[str]:
        inventory = []
        for name, shell in first.items():
            launcher = tmp_path / f"launcher {name}"
            launcher.write_text(f'#!/bin/sh\n{shell}\nexec {shlex.quote(device_python)} "$@"\n')
            launcher.chmod(0o755)
            fields = {
                "host": sshd.host,
                "python": str(launcher),
                "workdir": str(tmp_path / "work" / name),
                "ssh_config": str(sshd.config(tmp_path / f"ssh_config_{name}")),
            }
            tags = '["kitchen"]' if name.startswith("pi") else "[]"
            lines = [f"{key} = {json.dumps(value)}\n" for key, value in fields.items()]
            inventory.append(f"[device.{name}]\ntags = {tags}\n{''.join(lines)}")
        Path("devices.toml").write_text("\n".join(inventory))
        return ["--bundle", str(tiny_bundle), "--data", str(tiny_data), "--device", ",".join(first), *QUICK]

    return make


def test_devices_are_measured_at_the_same_time(fleet: Fleet, tmp_path: Path, capsys: Capture) -> None:
    # Each worker starts only once the other one is there too: one after the other, neither ever would.
    def meet(own: str, other: str) -> str:
        waits = f"for turn in $(seq 200); do [ -e {tmp_path}/{other} ] && break; sleep 0.1; done"
        return f"{MEASURES} touch {tmp_path}/{own}; {waits}; [ -e {tmp_path}/{other} ] || exit 9;; esac"

    assert main(fleet(pi4=meet("a", "b"), pi5=meet("b", "a"))) == 0
    out, err = capsys.readouterr()
    results = [read_result(Path(f"runs/bench/tiny/tiny-onnx-fp32@{name}")) for name in ("pi4", "pi5")]
    assert [result.device for result in results] == ["pi4", "pi5"]
    assert "pi4" in out
    assert "pi5" in out
    for name in ("pi4", "pi5"):
        assert f"tiny-onnx-fp32 on {name}: connecting" in err
        assert f"tiny-onnx-fp32 on {name}: p50 " in err


def test_a_tag_stands_for_all_devices_that_have_it(fleet: Fleet, capsys: Capture) -> None:
    arguments = fleet(pi4="", attic="", pi5="")
    at = arguments.index("--device")
    assert main([*arguments[:at], "--tag", "kitchen", *arguments[at + 2 :]]) == 0
    assert sorted(path.name for path in Path("runs/bench/tiny").glob("*@*")) == [
        "tiny-onnx-fp32@pi4",
        "tiny-onnx-fp32@pi5",
    ]
    assert main([*arguments[:at], "--tag", "cellar", *arguments[at + 2 :]]) == 1
    assert "error: no device has the tag 'cellar': devices.toml lists kitchen" in capsys.readouterr().err


def test_a_dead_device_and_a_failing_one_stop_no_other_and_the_end_says_which_failed_and_why(
    fleet: Fleet, sshd: Any, tmp_path: Path, tiny_bundle: Path, capsys: Capture
) -> None:
    arguments = fleet(dead="", failing=f"{MEASURES} echo 'Illegal instruction' >&2; exit 7;; esac", well="")
    sshd.config(tmp_path / "ssh_config_dead", Port="9")
    assert main([*arguments, "--json"]) == 1
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert [row["device"] for row in printed["results"]] == ["well"]
    assert "Connection refused" in printed["devices"]["dead"]["error"]
    assert printed["devices"]["failing"]["error"] is None
    assert "Illegal instruction" in printed["devices"]["failing"]["failures"][str(tiny_bundle)]
    assert printed["devices"]["well"] == {"error": None, "failures": {}}
    last = err.splitlines()[-3:]
    assert last[0] == "next: python bench/run.py --resume runs/bench/tiny"
    assert last[1].startswith("error: dead: ssh to edge-loopback failed (exit code 255, running ")
    assert last[1].endswith(f"(1 of 1 bundles failed: {tiny_bundle})")
    assert last[2].startswith("error: failing: ")
    assert "Illegal instruction (1 of 1 bundles failed: " in last[2]
    assert "Traceback" not in err


def test_a_device_that_drops_out_is_retried_from_the_bundle_it_was_at(
    fleet: Fleet, make_bundle: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    count = f"echo x >> {tmp_path}/starts"
    drop = f'[ "$(wc -l < {tmp_path}/starts)" = 2 ] && {{ {KILL_SSHD}; }}'
    arguments = fleet(far=f"{MEASURES} {count}; {drop};; esac")
    others = [str(make_bundle(tmp_path / name)) for name in ("second", "third")]
    assert main([arguments[0], arguments[1], *others, *arguments[2:]]) == 0
    err = capsys.readouterr().err
    assert (tmp_path / "starts").read_text() == "x\n" * 4  # three bundles, the second one twice
    finished = {path.parent.name for path in Path("runs/bench/tiny").rglob("result.json")}
    assert finished == {"tiny-onnx-fp32@far", "second@far", "third@far"}
    (warning,) = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert warning.startswith("warning: second: far: ssh to edge-loopback failed (exit code 255, running ")
    assert "second on far: lost, trying again in 0.01 s (1 of 3)" in err


def test_a_bundle_that_takes_its_device_down_each_time_fails_alone(
    fleet: Fleet, make_bundle: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    starts, second = tmp_path / "starts", make_bundle(tmp_path / "second")
    drop = f'[ "$(wc -l < {starts})" -le 4 ] && {{ {KILL_SSHD}; }}'
    arguments = fleet(far=f"{MEASURES} echo x >> {starts}; {drop};; esac")
    assert main([arguments[0], arguments[1], str(second), *arguments[2:]]) == 1
    assert starts.read_text() == "x\n" * 5  # once, three times more, and the next bundle
    assert [path.parent.name for path in Path("runs/bench/tiny").rglob("result.json")] == ["second@far"]
    err = capsys.readouterr().err
    assert "lost, trying again in 0.01 s (3 of 3)" in err
    assert err.splitlines()[-1].startswith("error: 1 of 2 bundles failed: ")


def test_a_device_that_stays_away_is_given_up_and_a_later_run_takes_up_the_rest(
    fleet: Fleet,
    sshd: Any,
    make_bundle: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    starts, config = tmp_path / "starts", tmp_path / "ssh_config_far"
    leave = f"sed -i 's/Port .*/Port 9/' '{config}'; {KILL_SSHD}"
    arguments = fleet(
        far=f'{MEASURES} echo x >> {starts}; [ "$(wc -l < {starts})" = 2 ] && {{ {leave}; }};; esac', near=""
    )
    others = [str(make_bundle(tmp_path / name)) for name in ("second", "third")]
    assert main([arguments[0], arguments[1], *others, *arguments[2:]]) == 1
    out, err = capsys.readouterr()
    names = [f"{bundle}@{device}" for device in ("far", "near") for bundle in ("tiny-onnx-fp32", "second", "third")]
    there = {path.parent.name for path in Path("runs/bench/tiny").rglob("result.json")}
    assert there == {names[0], *names[3:]}
    assert err.count("Connection refused") == 4  # three attempts, of which the last is the reason, said twice
    assert err.splitlines()[-1].startswith("error: far: ssh to edge-loopback failed")
    assert err.splitlines()[-1].endswith(f"(2 of 3 bundles failed: {others[0]} {others[1]})")
    kept = {name: Path(f"runs/bench/tiny/{name}/result.json").read_bytes() for name in there}
    sshd.config(config)
    (tmp_path / "elsewhere").mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "elsewhere")  # the inventory is found again
        assert main(["--resume", str(tmp_path / "runs/bench/tiny")]) == 0
    out, err = capsys.readouterr()
    assert "4 of 6 results are there, measuring 2" in err
    assert {path.parent.name for path in Path("runs/bench/tiny").rglob("result.json")} == set(names)
    assert {name: Path(f"runs/bench/tiny/{name}/result.json").read_bytes() for name in there} == kept
    assert len(out.splitlines()) >= 6
    assert starts.read_text() == "x\n" * 4


def test_a_host_key_that_changed_is_never_tried_again(fleet: Fleet, sshd: Any, tmp_path: Path, capsys: Capture) -> None:
    config, other = tmp_path / "ssh_config_far", tmp_path / "known"
    other.write_text(sshd.known_hosts.read_text().replace("AAAA", "AAAB", 1))
    other.touch()
    leave = f"""sed -i 's,UserKnownHostsFile .*,UserKnownHostsFile "{other}",' '{config}'; {KILL_SSHD}"""
    assert main(fleet(far=f"{MEASURES} {leave};; esac")) == 1
    err = capsys.readouterr().err
    assert "Host key verification failed" in err
    assert "(2 of 3)" not in err


def test_progress_of_a_device_is_a_line_with_its_name(fleet: Fleet, capsys: Capture) -> None:
    assert main(fleet(pi4="", pi5="")) == 0
    err = capsys.readouterr().err
    for line in err.splitlines():
        assert " on pi4: " in line or " on pi5: " in line or line.startswith(("results: ", "report: ", "next: "))


class _SlowToStop:
    """A device that is told to stop, and needs a while to end what runs on it."""

    name, shares_files = "slow", True

    def __init__(self) -> None:
        self.stopping, self.closed = threading.Event(), threading.Event()

    def stop(self) -> None:
        self.stopping.set()

    def close(self) -> None:
        self.closed.set()


def test_ctrl_c_waits_until_every_device_has_ended(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = _SlowToStop()

    def measured(driver: Any, task: Any) -> Any:
        _thread.interrupt_main()
        device.stopping.wait(10)
        time.sleep(0.5)
        raise DeviceError("stopped")

    monkeypatch.setattr(fleet_module._Driver, "_measured", measured)
    task: Any = fleet_module.Task(Bundle.open(tiny_bundle), MeasuredImages("", "", (), None, ()), {}, "result")
    lane: Any = fleet_module.Lane(device, [task])  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        fleet_module.measure_all([lane], lambda *_: Path(), Board(["slow"]))
    assert device.closed.is_set()
