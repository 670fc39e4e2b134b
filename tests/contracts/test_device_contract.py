"""What `devices.Device` promises, asked of every kind of device."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices import Device, DeviceError, LocalDevice, SshDevice, TransferError

AWKWARD = [
    "two words",
    "it's",
    'say "hello"',
    "$(touch evaluated)",
    "`touch evaluated`",
    "${HOME}",
    "$HOME",
    "~",
    "a\nb",
    "-n",
    "--help",
    "-oProxyCommand=touch evaluated",
    "*",
    "a;touch evaluated",
    "a&&b|c>d<e",
    "back\\slash",
    "größe 日本 🐢",
    "",
    "tab\there",
    "!history",
    "#comment",
]
SHOW_ARGUMENTS = "import sys, json; print(json.dumps(sys.argv[1:]))"


@pytest.fixture(params=["local", "ssh"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Device]:
    workdir = tmp_path / "the device's $(work) folder"
    made: Device
    if request.param == "local":
        made = LocalDevice(workdir)
    else:
        sshd = request.getfixturevalue("sshd")
        made = SshDevice("far", sshd.host, python=sys.executable, workdir=str(workdir), ssh_config=sshd.ssh_config)
    yield made
    made.close()


def test_a_command_gives_its_exit_code_and_both_outputs(device: Device) -> None:
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"
    done = device.run([*device.python, "-c", script], timeout_s=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err")


def test_a_command_that_was_killed_has_not_succeeded(device: Device) -> None:
    done = device.run([*device.python, "-c", "import os; os.kill(os.getpid(), 9)"], timeout_s=60)
    assert done.returncode in (-9, 255)
    assert device.run([*device.python, "-c", "import sys; sys.exit(255)"], timeout_s=60).returncode == 255


def test_arguments_arrive_as_they_are_and_nothing_is_evaluated(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    monkeypatch.chdir(tmp_path)
    done = device.run([*device.python, "-c", SHOW_ARGUMENTS, *AWKWARD], timeout_s=60)
    assert json.loads(done.stdout) == AWKWARD
    assert not (tmp_path / "evaluated").exists()
    assert not (Path.home() / "evaluated").exists()


def test_stdin_arrives_and_ends(device: Device) -> None:
    text = os.urandom(300_000).hex().encode()
    done = device.run([*device.python, "-c", "import sys; print(len(sys.stdin.read()))"], timeout_s=60, stdin=text)
    assert done.stdout == "600000\n"


def test_held_stdin_stays_open_until_the_command_ends(device: Device) -> None:
    script = (
        "import os, select; line = os.read(0, 100); ready, _, _ = select.select([0], [], [], 0.5); print(line, ready)"
    )
    done = device.run([*device.python, "-c", script], timeout_s=60, stdin=b"job\n", hold_stdin=True)
    assert done.stdout == "b'job\\n' []\n"


def test_lines_of_stderr_come_while_the_command_runs(device: Device) -> None:
    script = "import sys, os; print('first', file=sys.stderr, flush=True); os.read(0, 1)"
    seen: list[str] = []
    arrived = threading.Event()

    def note(line: str) -> None:
        seen.append(line)
        arrived.set()

    # The command would end by itself only once its stdin is closed, which holding forbids: the limit ends it.
    with pytest.raises(DeviceError, match="no sign of life for 2 s"):
        device.run([*device.python, "-c", script], timeout_s=2, hold_stdin=True, on_stderr=note)
    assert arrived.is_set()
    assert seen[0] == "first"


def test_a_program_that_is_not_there_is_a_failure(device: Device) -> None:
    try:
        failed = device.run(["/no/such/program"], timeout_s=60).returncode != 0
    except DeviceError as error:
        failed = "/no/such/program" in str(error)
    assert failed


def test_pushed_files_arrive_whole_and_come_back_the_same(device: Device, tmp_path: Path) -> None:
    files = _some_files(tmp_path)
    there = device.push(files, "bundles/abc")
    assert there == f"{device.workdir}/bundles/abc"
    device.pull(there, tmp_path / "back")
    assert _contents(tmp_path / "back") == {name: path.read_bytes() for name, path in files.items()}


def test_a_folder_that_is_there_is_not_pushed_again(device: Device, tmp_path: Path) -> None:
    files = _some_files(tmp_path)
    there = Path(device.push(files, "bundles/abc"))
    before = {path: path.stat().st_mtime_ns for path in there.rglob("*")}
    (tmp_path / "a.bin").write_bytes(b"changed")
    assert device.push(files, "bundles/abc") == str(there)
    assert {path: path.stat().st_mtime_ns for path in there.rglob("*")} == before


def test_a_push_of_a_missing_file_leaves_nothing(device: Device, tmp_path: Path) -> None:
    with pytest.raises((DeviceError, OSError), match=r"gone\.bin"):
        device.push({**_some_files(tmp_path), "gone": tmp_path / "gone.bin"}, "bundles/abc")
    assert _contents(Path(device.workdir)) == {}
    assert not list(Path(device.workdir).rglob("*partial*"))


def test_names_outside_the_folder_are_refused(device: Device, tmp_path: Path) -> None:
    file = _some_files(tmp_path)["a.bin"]
    for name in ("../out", "/tmp/edge-out", "a/../../out"):
        with pytest.raises(TransferError, match="outside"):
            device.push({name: file}, "bundles/abc")
    assert _contents(Path(device.workdir)) == {}


def test_pulling_a_folder_that_is_not_there_says_so_and_leaves_nothing(device: Device, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="there is no folder /no/such"):
        device.pull("/no/such", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_facts_name_the_python_and_its_packages(device: Device) -> None:
    import numpy

    facts = device.facts()
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["packages"]["numpy"] == numpy.__version__
    assert facts["packages"]["tflite-runtime"] is None
    assert facts["pointer_bits"] in (32, 64)
    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert facts["memory_bytes"] > 1e8


def _some_files(folder: Path) -> dict[str, Path]:
    contents = {"a.bin": os.urandom(3_000_000), "sub/größe it's $(x).txt": b"text", "empty": b""}
    files = {}
    for index, (name, content) in enumerate(contents.items()):
        files[name] = folder / ("a.bin" if index == 0 else f"file {index}")
        files[name].write_bytes(content)
    return files


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
