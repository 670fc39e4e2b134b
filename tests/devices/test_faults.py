"""Everything that goes wrong between a host and a device ends in the right state, and in one line."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from devices import ConnectionFailedError, DeviceError, SshDevice, TransferError, multiplex, process, ssh

MakeDevice = Callable[..., SshDevice]
Wrapper = Callable[[Path, str], str]
Running = Callable[[str], list[int]]
Eventually = Callable[[Callable[[], object]], None]

DIGEST = "0123456789abcdef" * 2
# Ends when its stdin does, as the bench's worker does.
WATCHER = "import os, sys; print('ready', os.getppid(), file=sys.stderr, flush=True)\nwhile os.read(0, 100): pass"
PUSHER = """
import sys
from pathlib import Path
from devices import SshDevice, TransferError
device = SshDevice("far", sys.argv[1], python=sys.executable, ssh_config=Path(sys.argv[2]), workdir=sys.argv[3])
try:
    print(device._connection.argv() and device._connection.folder, flush=True)
    device.push({"big": Path(sys.argv[4])}, sys.argv[5])
except KeyboardInterrupt:
    sys.exit(130)
finally:
    device.close()
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that takes a second of silence for the end."""
    monkeypatch.setitem(multiplex.OPTIONS, "ServerAliveInterval", "1")
    monkeypatch.setitem(multiplex.OPTIONS, "ServerAliveCountMax", "1")
    monkeypatch.setitem(multiplex.OPTIONS, "ConnectTimeout", "1")


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file that does not fit into the buffers on the way."""
    path = tmp_path / "big"
    path.write_bytes(os.urandom(1 << 20) * 16)
    return path


@pytest.fixture
def second_sshd(sshd: Any) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts another sshd with the first one's keys, which may be killed, on one port of its own."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        config = sshd.key.parent / "sshd_config"
        argv = ["/usr/sbin/sshd", "-D", "-e", "-f", config, "-p", str(port), "-o", "PidFile=none"]
        log = sshd.key.parent / f"log-{port}"
        with log.open("wb") as stream:
            server = subprocess.Popen(argv, stdout=stream, stderr=stream, start_new_session=True)
        deadline = time.monotonic() + 20
        while b"Server listening" not in log.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.02)
        server.port = port  # type: ignore[attr-defined]
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()
        server.wait()


def test_a_network_that_falls_silent_during_a_command_is_noticed(
    through: MakeDevice, network: Any, impatient: None, running: Running, eventually: Eventually
) -> None:
    device = through()
    device.facts()
    token = f"edge-silent-run-{os.getpid()}"
    message = _failure(
        lambda: device.run(
            [*device.python, "-c", WATCHER, token], timeout_s=60, hold_stdin=True, on_stderr=lambda _: network.stall()
        )
    )
    assert message.startswith("far: ssh to edge-loopback failed (exit code 255, running ")
    assert message.endswith("the link was lost: see that it is on and that this works: ssh edge-loopback")
    network.cut()
    eventually(lambda: running(token) == [])


def test_a_network_that_falls_silent_during_a_push_is_noticed_and_the_next_push_is_whole(
    through: MakeDevice,
    network: Any,
    impatient: None,
    big: Path,
    tmp_path: Path,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = through()
    assert device.workdir
    network.at(3_000_000, network.stall)
    with monkeypatch.context() as patch:
        patch.setattr(ssh, "_DEVICE_PATIENCE_S", 2)
        with pytest.raises(DeviceError, match="far: "):
            device.push({"big": big}, f"data/{DIGEST}")
    eventually(lambda: list((tmp_path / "work" / "data").iterdir()) == [])  # it, too, has heard nothing
    network.cut()
    there = device.push({"big": big}, f"data/{DIGEST}")
    assert Path(there, "big").read_bytes() == big.read_bytes()


def test_a_machine_that_accepts_and_says_nothing_is_given_up(
    through: MakeDevice, network: Any, impatient: None
) -> None:
    network.stall()
    assert "see that it is on" in _failure(through().facts)


def test_a_network_cut_in_a_push_leaves_nothing_and_the_next_push_is_whole(
    through: MakeDevice, network: Any, big: Path, tmp_path: Path, eventually: Eventually
) -> None:
    device = through()
    assert device.workdir
    network.at(3_000_000, network.cut)
    with pytest.raises(ConnectionFailedError, match="far: ssh to edge-loopback failed") as raised:
        device.push({"big": big}, f"data/{DIGEST}")
    assert "\n" not in str(raised.value)
    eventually(lambda: list((tmp_path / "work" / "data").iterdir()) == [])
    assert Path(device.push({"big": big}, f"data/{DIGEST}"), "big").stat().st_size == big.stat().st_size


def test_a_network_cut_in_a_pull_leaves_nothing(through: MakeDevice, network: Any, big: Path, tmp_path: Path) -> None:
    device = through()
    there = device.push({"big": big}, f"data/{DIGEST}")
    network.slow()
    threading.Timer(0.5, network.cut).start()
    with pytest.raises(ConnectionFailedError, match="far: ssh to edge-loopback failed"):
        device.pull(there, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob("back.partial*"))


def test_a_device_that_restarts_is_reached_again(
    far: MakeDevice, second_sshd: Callable[[], Any], running: Running, eventually: Eventually
) -> None:
    server = second_sshd()
    known = f"[127.0.0.1]:{server.port}"
    device = far(Port=str(server.port), HostKeyAlias=known, StrictHostKeyChecking="no", UserKnownHostsFile="/dev/null")
    token = f"edge-restart-{os.getpid()}"

    device.facts()

    def restart(_: str) -> None:
        for pid in [server.pid, *_below(server.pid)]:
            _kill(pid)

    assert "the link was lost" in _failure(
        lambda: device.run([*device.python, "-c", WATCHER, token], timeout_s=30, hold_stdin=True, on_stderr=restart)
    )
    eventually(lambda: running(token) == [])
    assert "Connection refused" in _failure(device.facts)
    second_sshd()
    assert device.facts()["python"].startswith("3.")


def test_a_shared_connection_that_is_killed_is_opened_again(far: MakeDevice, running: Running) -> None:
    device = far()
    device.facts()
    masters = [pid for pid in running(str(device._connection.folder)) if "[mux]" in _words(pid)]
    assert len(masters) == 1
    _kill(masters[0])
    assert device.run(["echo", "again"], timeout_s=30).stdout == "again\n"


def test_a_program_killed_there_in_a_push_is_reported_and_its_remains_go_with_the_next(
    through: MakeDevice, network: Any, big: Path, tmp_path: Path, eventually: Eventually
) -> None:
    device, data = through(), tmp_path / "work" / "data"
    assert device.workdir
    network.at(3_000_000, network.slow)

    def kill_it() -> None:
        eventually(lambda: list(data.glob("*.partial-*/big")))
        _kill(int(next(data.iterdir()).name.partition(".partial-")[2].split("-")[0]))

    with (
        _together(kill_it),
        pytest.raises(TransferError, match=r"far: cannot push 16\.8 MB to .*: exit code (137|255)"),
    ):
        device.push({"big": big}, f"data/{DIGEST}")
    assert [path.name.partition(".partial-")[:2] for path in data.iterdir()] == [(DIGEST, ".partial-")]
    device.push({"small": tmp_path / "config-0"}, f"data/{'f' * 32}")  # another set clears it away too
    assert [path.name for path in data.iterdir()] == ["f" * 32]


def test_too_little_memory_there_is_reported(far: MakeDevice, wrapper: Wrapper, tmp_path: Path) -> None:
    device = far(python=wrapper(tmp_path / "python", "ulimit -v 200000"))
    done = device.run([*device.python, "-c", "b'x' * 10**9"], timeout_s=30)
    assert done.returncode == 1
    assert done.stderr.endswith("MemoryError")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_host_that_ends_in_a_push_leaves_nothing_on_either_side(
    network: Any,
    through: MakeDevice,
    tmp_path: Path,
    big: Path,
    running: Running,
    eventually: Eventually,
    how: signal.Signals,
) -> None:
    through()  # writes its SSH configuration
    network.at(3_000_000, network.slow)
    argv = [sys.executable, "-c", PUSHER, "edge-loopback", str(tmp_path / "config-0"), str(tmp_path / "work"), str(big)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen([*argv, f"data/{DIGEST}"], stdout=subprocess.PIPE, env=environment) as host:
        assert host.stdout is not None
        control_folder = host.stdout.readline().decode().strip()
        eventually(lambda: list((tmp_path / "work").rglob(f"{DIGEST}.partial-*")))
        host.send_signal(how)
        assert host.wait(30) == (130 if how == signal.SIGINT else -how)
    eventually(lambda: not list((tmp_path / "work" / "data").iterdir()))
    eventually(lambda: running(control_folder) == [])
    eventually(lambda: not Path(control_folder).exists())


def test_two_hosts_that_push_the_same_at_once_both_find_it_whole(far: MakeDevice, big: Path, tmp_path: Path) -> None:
    found: list[str] = []
    devices = [far(), far()]
    for device in devices:
        assert device.workdir
    start = threading.Barrier(2)

    def push(device: SshDevice) -> None:
        start.wait()
        found.append(device.push({"big": big}, f"data/{DIGEST}"))

    hosts = [threading.Thread(target=push, args=(device,)) for device in devices]
    for host in hosts:
        host.start()
    for host in hosts:
        host.join()
    assert found == [str(tmp_path / "work" / "data" / DIGEST)] * 2
    assert [path.name for path in (tmp_path / "work" / "data").iterdir()] == [DIGEST]
    assert Path(found[0], "big").read_bytes() == big.read_bytes()


def test_what_cannot_be_read_here_is_reported_and_leaves_nothing_there(far: MakeDevice, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    with pytest.raises(TransferError, match=r"far: cannot push .*: .*Is a directory"):
        far().push({"a": tmp_path / "a", "b": tmp_path}, "data/1")
    assert not [path for path in (tmp_path / "work").rglob("*") if path.name != "data"]


def test_a_workdir_that_cannot_be_is_reported(far: MakeDevice, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TransferError, match=r"far: cannot push 0\.0 MB to .*/file/work/data/1: .*Not a directory"):
        far(workdir=str(tmp_path / "file" / "work")).push({"a": tmp_path / "file"}, "data/1")


def test_an_ssh_agent_that_dies_is_reported_once_it_is_needed(
    far: MakeDevice, sshd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as agent:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        while subprocess.run(["ssh-add", "-q", sshd.key], check=False, capture_output=True).returncode != 0:
            assert agent.poll() is None
            time.sleep(0.02)
        from_agent = {"IdentityFile": "none", "IdentitiesOnly": "no", "IdentityAgent": "SSH_AUTH_SOCK"}
        device, later = far(**from_agent), far(**from_agent)
        assert device.run(["true"], timeout_s=30).returncode == 0
        agent.kill()
        agent.wait()
        assert device.run(["true"], timeout_s=30).returncode == 0  # over the connection that is there
        assert "Permission denied" in _failure(later.facts)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ('{"python": "3.1', "it answered '{\"python\": \"3.1', which is garbled"),
        ("[1, 2]", "it answered '[1, 2]', expected a JSON object"),
        ("{}", "it reports python = None, expected text"),
        ('{"python": "3.11.2", "packages": []}', "it reports packages = [], expected a table"),
        ('{"python": "3.11.2", "packages": {}, "cores": "4"}', "it reports cores = '4', expected a number"),
        ('{"python": "new", "packages": {}}', "it reports Python 'new', expected a version"),
    ],
)  # fmt: skip
def test_garbled_facts_are_one_line(far: MakeDevice, tmp_path: Path, wrapper: Wrapper, answer: str, says: str) -> None:
    python = wrapper(tmp_path / "python", f"echo 'edge-distill facts: '{shlex.quote(answer)}; exit 0")
    with pytest.raises(DeviceError) as raised:
        far(python=python).facts()
    assert str(raised.value).startswith("far: ")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_this_machine_s_clock_may_jump_while_a_command_runs(far: MakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    device = far()

    def jump(_: str) -> None:
        monkeypatch.setattr(time, "time", lambda: 4e9)

    done = device.run([*device.python, "-c", "import sys; print('x', file=sys.stderr)"], timeout_s=30, on_stderr=jump)
    assert done.returncode == 0


@pytest.mark.parametrize("clock", [0.0, 4e9])
def test_a_cache_survives_a_clock_that_jumped(far: MakeDevice, tmp_path: Path, clock: float) -> None:
    data = tmp_path / "work" / "data"
    for number in range(12):
        (data / f"{number:032x}").mkdir(parents=True)
        os.utime(data / f"{number:032x}", (clock + number, clock + number))
    (tmp_path / "a").write_text("a")
    assert Path(far().push({"a": tmp_path / "a"}, f"data/{DIGEST}"), "a").read_text() == "a"
    kept = {path.name for path in data.iterdir()}
    assert DIGEST in kept
    # Behind us: the newest seven and the one just pushed. Ahead of us: nothing is known to be old.
    assert len(kept) == (8 if clock == 0.0 else 13)


def test_a_cache_keeps_the_newest_and_what_was_used_of_late_and_what_is_not_its_own(
    far: MakeDevice, tmp_path: Path
) -> None:
    data = tmp_path / "work" / "data"
    month_ago = time.time() - 30 * 86400
    for number in range(12):
        (data / f"{number:032x}").mkdir(parents=True)
        os.utime(data / f"{number:032x}", (month_ago + number, month_ago + number))
    (data / "holiday").mkdir()
    os.utime(data / "holiday", (0, 0))
    (tmp_path / "a").write_text("a")
    device = far()
    device.push({"a": tmp_path / "a"}, f"data/{0:032x}")  # there already: this is its use
    device.push({"a": tmp_path / "a"}, f"data/{DIGEST}")
    kept = sorted(path.name for path in data.iterdir())
    assert kept == sorted(["holiday", DIGEST, f"{0:032x}", *(f"{number:032x}" for number in range(6, 12))])


def test_a_command_that_falls_silent_is_ended_on_both_sides(
    far: MakeDevice, running: Running, eventually: Eventually
) -> None:
    device = far()
    token = f"edge-hangs-{os.getpid()}"
    with pytest.raises(DeviceError, match=r"no sign of life for 1 s from ssh .*: gave up and ended it"):
        device.run([*device.python, "-c", WATCHER, token], timeout_s=1, hold_stdin=True)
    eventually(lambda: running(token) == [])


def test_a_host_is_heard_as_long_as_it_is_there(far: MakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_HEARTBEAT_S", 0.05)
    script = "import os\nfor _ in range(5): print(os.read(0, 1))"
    device = far()
    done = device.run([*device.python, "-c", script], timeout_s=30, hold_stdin=True)
    assert done.stdout == "b'\\n'\n" * 5


def _failure(call: Callable[[], object]) -> str:
    with pytest.raises(ConnectionFailedError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@contextmanager
def _together(do: Callable[[], None]) -> Iterator[None]:
    """Does something in another thread meanwhile."""
    thread = threading.Thread(target=do)
    thread.start()
    yield
    thread.join()


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _words(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")


def _below(pid: int) -> list[int]:
    """Ids of all descendants of a process."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found = list(parents.get(pid, []))
    for child in found:
        found += parents.get(child, [])
    return found
