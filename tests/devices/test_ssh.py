"""Failures of SSH and of the machine behind it, against a real sshd."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devices import ConnectionFailedError, DeviceError, SshDevice, TransferError

# Ends when its stdin does, as the bench's worker does.
WATCHER = "import os, sys; print('ready', os.getppid(), file=sys.stderr, flush=True)\nwhile os.read(0, 100): pass"
HOST = """
import sys
from pathlib import Path
from devices import SshDevice
device = SshDevice("far", sys.argv[1], python=sys.executable, ssh_config=Path(sys.argv[2]))
def ready(line):
    print(line, device._connection.folder, flush=True)
try:
    device.run([*device.python, "-c", sys.argv[3], sys.argv[4]], timeout_s=60, hold_stdin=True, on_stderr=ready)
except KeyboardInterrupt:
    sys.exit(130)
finally:
    device.close()
"""

MakeDevice = Callable[..., SshDevice]
Wrapper = Callable[[Path, str], str]
Running = Callable[[str], list[int]]


def test_a_changed_host_key_is_refused_with_ssh_s_own_words(far: MakeDevice, sshd: Any, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    kind, key = (tmp_path / "other.pub").read_text().split()[:2]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{sshd.port} {kind} {key}\n")
    message = _failure(far(UserKnownHostsFile=f'"{tmp_path / "known"}"'))
    assert message.startswith("far: ssh to edge-loopback failed (exit code 255, running echo")
    assert "Host key verification failed" in message
    assert message.endswith("connect once by hand and check its key: ssh edge-loopback")
    assert "@@" not in message


def test_an_unknown_host_key_is_refused_and_not_learned(far: MakeDevice, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.touch()
    assert "Host key verification failed" in _failure(far(UserKnownHostsFile=f'"{known}"', StrictHostKeyChecking="ask"))
    assert known.read_text() == ""


def test_a_closed_port_is_reported(far: MakeDevice) -> None:
    message = _failure(far(Port="9"))
    assert "Connection refused" in message
    assert message.endswith("see that it is on and that this works: ssh edge-loopback")


def test_a_key_that_is_not_let_in_is_reported(far: MakeDevice, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    message = _failure(far(IdentityFile=f'"{tmp_path / "other"}"', IdentityAgent="none"))
    assert "Permission denied" in message
    assert message.endswith("let your key in: ssh-copy-id edge-loopback")


def test_a_broken_ssh_configuration_is_reported(far: MakeDevice) -> None:
    assert "nosuchoption" in _failure(far(NoSuchOption="1")).lower()


def test_a_missing_ssh_program_is_reported(far: MakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    device = far()
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DeviceError, match="cannot start ssh"):
        device.facts()
    monkeypatch.undo()


@pytest.mark.parametrize(
    "host", ["-oProxyCommand=touch evaluated", "a b", "a\nb", "$(touch x)", "`id`", "a;b", "pi@'x'", "", "a|b", "*"]
)
def test_a_host_that_could_be_an_option_or_shell_text_is_refused(host: str) -> None:
    with pytest.raises(DeviceError, match="no SSH destination"):
        SshDevice("far", host)


def test_a_missing_python_is_named(far: MakeDevice) -> None:
    with pytest.raises(DeviceError, match=r"far: /no/such python does not run there \(exit code 127: .*devices\.toml"):
        far(python="/no/such python").facts()


def test_a_python_whose_path_has_spaces_and_quotes_runs(far: MakeDevice, tmp_path: Path, wrapper: Wrapper) -> None:
    folder = tmp_path / "my 'venv' $(touch evaluated)"
    folder.mkdir()
    assert far(python=wrapper(folder / "py thon", "")).facts()["python"].startswith("3.")


def test_a_home_relative_python_is_resolved_there(far: MakeDevice) -> None:
    home = pwd.getpwuid(os.getuid()).pw_dir  # a login's, whatever HOME is here
    device = far(python="~/bin/it's python")
    assert device.python == (f"{home}/bin/it's python",)


def test_a_python_that_chatters_first_is_understood(far: MakeDevice, tmp_path: Path, wrapper: Wrapper) -> None:
    device = far(python=wrapper(tmp_path / "python", "echo 'Welcome to $HOME'; echo {not json"))
    assert device.facts()["python"].startswith("3.")
    (tmp_path / "a").write_bytes(b"a")
    device.pull(device.push({"a": tmp_path / "a"}, "x"), tmp_path / "back")
    assert (tmp_path / "back" / "a").read_bytes() == b"a"


def test_folders_asked_for_with_the_facts_are_pushed_without_another_word(
    far: MakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"a")
    files = {"a": tmp_path / "a"}
    device = far()
    there = [device.push(files, folder) for folder in ("data/1", "data/$(2) '")]
    os.utime(there[0], (0, 0))
    assert "folders" not in device.facts(["data/1", "data/3", "data/$(2) '"])
    assert Path(there[0]).stat().st_mtime > 1e9  # it counts as used
    with monkeypatch.context() as patch:
        patch.setattr(device, "run", None)
        assert [device.push(files, folder) for folder in ("data/1", "data/$(2) '")] == there
    assert Path(device.push(files, "data/3"), "a").read_bytes() == b"a"
    shutil.rmtree(there[0])
    assert Path(device.push(files, "data/1"), "a").read_bytes() == b"a"  # it is asked anew each time


def test_a_full_disk_there_is_reported_and_nothing_half_copied_stays(
    far: MakeDevice, tmp_path: Path, wrapper: Wrapper
) -> None:
    device = far(python=wrapper(tmp_path / "python", "ulimit -f 100"))
    (tmp_path / "small").write_bytes(b"x" * 1000)
    (tmp_path / "big").write_bytes(b"x" * 10_000_000)
    with pytest.raises(TransferError, match=r"far: cannot push 10\.0 MB to .*/work/data/1: .*File too large"):
        device.push({"a": tmp_path / "small", "b": tmp_path / "big"}, "data/1")
    assert list((tmp_path / "work" / "data").iterdir()) == []


def test_no_space_left_there_is_reported(far: MakeDevice, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path / "work"]
    if os.geteuid() != 0 or subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        (tmp_path / "big").write_bytes(b"x" * 3_000_000)
        with pytest.raises(TransferError, match="No space left on device"):
            far().push({"big": tmp_path / "big"}, "data/1")
        assert list((tmp_path / "work" / "data").iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", tmp_path / "work"], check=True)


def test_a_link_lost_in_the_middle_of_a_command_is_reported(far: MakeDevice) -> None:
    def cut(line: str) -> None:
        os.kill(int(line.split()[1]), signal.SIGKILL)  # the sshd of this session

    device = far()
    with pytest.raises(ConnectionFailedError, match=r"far: ssh to edge-loopback failed \(exit code 255"):
        device.run([*device.python, "-c", WATCHER], timeout_s=30, hold_stdin=True, on_stderr=cut)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_runs_on_there_once_this_side_has_gone(sshd: Any, how: signal.Signals, running: Running) -> None:
    token = f"edge-distill-test-{os.getpid()}-{how}"
    argv = [sys.executable, "-c", HOST, sshd.host, str(sshd.ssh_config), WATCHER, token]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment, text=True) as host:
        assert host.stdout is not None
        word, _, control_folder = host.stdout.readline().split()
        assert word == "ready"
        assert len(running(token)) >= 2  # this side and that
        host.send_signal(how)
        assert host.wait(30) == (130 if how == signal.SIGINT else -how)
    deadline = time.monotonic() + 20
    while running(token) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(token) == []
    while (running(control_folder) or Path(control_folder).exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(control_folder) == []
    assert not Path(control_folder).exists()


def test_the_shared_connection_is_private_and_gone_after_close(far: MakeDevice, running: Running) -> None:
    device = far()
    device.facts()
    folder = device._connection.folder
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700
    device.close()
    assert not folder.exists()
    assert running(str(folder)) == []


def test_facts_survive_json(far: MakeDevice) -> None:
    facts = far().facts()
    assert json.loads(json.dumps(facts)) == facts


def _failure(device: SshDevice) -> str:
    with pytest.raises(ConnectionFailedError) as raised:
        _ = device._home
    message = str(raised.value)
    assert "\n" not in message
    return message
