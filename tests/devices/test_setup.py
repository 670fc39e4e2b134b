"""`python -m devices setup` against a real sshd, with real venvs and wheels that hold next to nothing."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devices import ConnectionFailedError, DeviceError, LocalDevice, programs, setup, venv
from devices.__main__ import main
from devices.inventory import toml_entry
from devices.setup import Order, set_up

Capture = pytest.CaptureFixture[str]
Wrapper = Callable[[Path, str], str]
MakeWheel = Callable[..., Path]
MakeDevice = Callable[..., Any]
Running = Callable[[str], list[int]]
Eventually = Callable[[Callable[[], object]], None]

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def inventory(sshd: Any, tmp_path: Path) -> Callable[..., str]:
    """Writes an inventory with the device `far`."""

    def write(**fields: str) -> str:
        known = {"host": sshd.host, "ssh_config": str(sshd.ssh_config), "workdir": str(tmp_path / "work"), **fields}
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in known.items()]
        (tmp_path / "devices.toml").write_text("[device.far]\n" + "".join(lines))
        return str(tmp_path / "devices.toml")

    return write


@pytest.fixture(scope="session")
def made_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv as `python -m venv` makes it, but that its pip is a link to the one here."""
    pip = pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("made") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "pip").symlink_to(Path(pip.__file__).parent)
    return folder


@pytest.fixture
def quick_venv(made_venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test is about what follows, the seconds for making a venv are spent once: the device copies one."""
    original = programs.program_stdin

    def quick(module: Any) -> bytes:
        source = original(module).partition(b"\n")[2]
        if module is venv:
            copy = f"def _must(argv, host, name): shutil.copytree({str(made_venv)!r}, argv[-1], symlinks=True)"
            source = source.replace(b"if __name__", copy.encode() + b"\nif __name__")
        return b"%d\n" % len(source) + source

    monkeypatch.setattr(programs, "program_stdin", quick)


def test_a_venv_is_made_from_wheels_and_found_again(
    inventory: Callable[..., str], wheel_folder: Path, tmp_path: Path, capsys: Capture, canary: str
) -> None:
    place = tmp_path / "größe it's; touch my venv"
    wheels = tmp_path / f"-wheels $(touch {canary})"
    shutil.copytree(wheel_folder, wheels)
    options = ["--venv", str(place), "--inventory", inventory(python=sys.executable)]
    assert main(["setup", "far", "--engine", "onnx", *options, f"--wheels={wheels}"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[:4] == [
        f"venv          {place} (made)",
        f"python        {platform.python_version()} ({place}/bin/python)",
        "installed     onnxruntime 1.31.0, numpy 1.26.4, pillow 11.0",
        "engine        onnx opens: CPUExecutionProvider",
    ]
    assert tomllib.loads("\n".join(out.splitlines()[4:])) == {"device": {"far": {"python": f"{place}/bin/python"}}}
    assert "sending 4 wheels, 0.0 MB\n" in err
    assert err.endswith("in place of what it says of far:\nnext: python bench/run.py --device far\n")
    # Nothing else is left, and nothing in it knows the name it had while it was made.
    assert list((tmp_path / "work" / "wheels").iterdir()) == []
    assert not list(tmp_path.glob("*.partial-*"))
    assert not (place / "tmp").exists()
    assert not [path for path in (place / "bin").iterdir() if b".partial-" in path.read_bytes()]
    assert b".partial-" not in (place / "pyvenv.cfg").read_bytes()
    assert subprocess.check_output([place / "bin" / "flatbuffers"]) == b"the script runs\n"

    before = _state(place)
    assert main(["setup", "far", "--engine", "onnx", *options, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["made"], answer["packages"]["onnxruntime"]) == (False, "1.31.0")
    assert main(["setup", "far", "--engine", "openvino", *options]) == 1
    says = "is there already and does not run openvino (openvino does not open there: ModuleNotFoundError"
    assert says in capsys.readouterr().err
    options[-1] = inventory(python=f"{place}/bin/python")
    assert main(["setup", "far", "--engine", "onnx", *options]) == 0
    out, err = capsys.readouterr()
    assert "[device" not in out
    assert err == "next: python bench/run.py --device far\n"
    assert _state(place) == before


def test_the_device_s_own_index_is_used_and_its_second_choice_said(
    quick_venv: None, far: MakeDevice, wheel_folder: Path, tmp_path: Path, make_wheel: MakeWheel, wrapper: Wrapper
) -> None:
    index = tmp_path / "index"
    shutil.copytree(wheel_folder, index)
    code = "class Interpreter: pass\n"
    make_wheel(index, "tflite_runtime-2.14.0-py3-none-any", {"tflite_runtime/interpreter.py": code})
    knows = f"export PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_FIND_LINKS={shlex.quote(index.as_uri())}"
    device = far(python=wrapper(tmp_path / "python", knows))
    said: list[str] = []
    ready = set_up(device, Order("tflite", str(tmp_path / "venv")), said.append)
    assert ready.packages == {"tflite-runtime": "2.14.0", "numpy": "1.26.4", "pillow": "11.0"}
    assert "no ai-edge-litert>=2.2 for this machine, trying the next choice" in said
    assert not (tmp_path / "work").exists()


def test_an_engine_that_does_not_open_leaves_no_venv_and_no_wheels(
    quick_venv: None, far: MakeDevice, wheel_folder: Path, tmp_path: Path, make_wheel: MakeWheel
) -> None:
    wheels = tmp_path / "wheels"
    shutil.copytree(wheel_folder, wheels)
    broken = "raise ImportError('libopenblas.so.0: cannot open shared object file')\n"
    make_wheel(wheels, "onnxruntime-1.31.0-py3-none-any", {"onnxruntime.py": broken})
    with pytest.raises(DeviceError) as raised:
        set_up(far(), Order("onnx", str(tmp_path / "place" / "venv"), wheels=wheels), lambda _: None)
    assert str(raised.value) == (
        "far: onnx does not open there: ImportError: libopenblas.so.0: cannot open shared object file"
    )
    assert list((tmp_path / "place").iterdir()) == []
    assert list((tmp_path / "work" / "wheels").iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    quick_venv: None, far: MakeDevice, wheel_folder: Path, tmp_path: Path, make_wheel: MakeWheel, wrapper: Wrapper
) -> None:
    wheels = tmp_path / "wheels"
    shutil.copytree(wheel_folder, wheels)
    make_wheel(wheels, "pillow-11.0-py3-none-any", {"PIL/Image.py": "", "PIL/big": bytes(20_000_000)})
    python = wrapper(tmp_path / "python", "ulimit -f 16384")  # 8 MiB
    with pytest.raises(DeviceError, match=r"far: pip install onnxruntime.* failed \(.*File too large"):
        set_up(far(python=python), Order("onnx", str(tmp_path / "place" / "venv"), wheels=wheels), lambda _: None)
    assert list((tmp_path / "place").iterdir()) == []
    assert list((tmp_path / "work" / "wheels").iterdir()) == []


def test_too_little_space_is_refused_before_anything_is_sent(
    far: MakeDevice, wheel_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "_PIP_BYTES", 10**18)
    with pytest.raises(DeviceError, match=r"far: \d+ MB are free for .*/venv, about 1000000000000 MB are needed"):
        set_up(far(), Order("onnx", str(tmp_path / "venv"), wheels=wheel_folder), lambda _: None)
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "venv").exists()


def test_a_python_without_venv_is_answered_with_what_to_install(far: MakeDevice, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "debian"], check=True)
    (site,) = (tmp_path / "debian" / "lib").glob("python*/site-packages")
    (site / "no_ensurepip.pth").write_text("import sys; sys.modules['ensurepip'] = None\n")
    python = str(tmp_path / "debian" / "bin" / "python")
    with pytest.raises(DeviceError) as raised:
        set_up(far(python=python), Order("onnx", str(tmp_path / "venv")), lambda _: None)
    assert str(raised.value) == (
        f"far: {python} cannot make virtual environments: run there: sudo apt install python3-venv"
    )
    assert not (tmp_path / "venv").exists()


def test_an_old_python_is_refused_unless_a_newer_one_is_there(
    inventory: Callable[..., str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "python3.9"
    facts = {"python": "3.9.2", "executable": str(old), "abi": "cp39", "architecture": "aarch64", "home": "/",
             "pointer_bits": 64, "packages": {}, "libc": "glibc 2.31"}  # fmt: skip
    old.write_text(f"#!/bin/sh\necho 'edge-distill facts: '{shlex.quote(json.dumps(facts))}\n")
    old.chmod(0o755)
    options = ["--engine", "onnx", "--venv", str(tmp_path / "venv"), "--wheels", str(tmp_path / "none")]
    assert main(["setup", "far", *options, "--python", str(old), "--inventory", inventory()]) == 1
    assert capsys.readouterr().err == (
        f"error: far: no Python 3.11 or newer there ({old} is 3.9.2): Raspberry Pi OS 12 (bookworm) and Debian 12 have "
        "one; install it, or name one with --python\n"
    )
    # As the inventory's it is only the first to be asked.
    monkeypatch.setattr(setup, "_OTHER_PYTHONS", ("no-such-python", sys.executable))
    assert main(["setup", "far", *options, "--inventory", inventory(python=str(old))]) == 1
    assert "none: add --offline to fill it" in capsys.readouterr().err
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    "place", ["venv", "", "~", "/", "~/", "../venv", "~/../venv", "-x", "~root/venv", "/tmp/a\nb", "/tmp/$(touch {})",
              "/tmp/`touch {}`", '/tmp/a"; touch {}; "', "/tmp/a\\b"]
)  # fmt: skip
def test_a_path_that_a_venv_cannot_have_is_refused(place: str, canary: str) -> None:
    with pytest.raises(venv.VenvError, match="is no place for a venv") as raised:
        venv.inspect({"venv": place.format(canary), "engine": "onnx", "workdir": "/"})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("place", ["", "/tmp/$(touch {})"])
def test_such_a_path_is_refused_there_in_one_line(
    place: str, inventory: Callable[..., str], capsys: Capture, canary: str
) -> None:
    options = ["--engine", "onnx", "--inventory", inventory(python=sys.executable)]
    assert main(["setup", "far", *options, f"--venv={place.format(canary)}"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: far: ")
    assert "is no place for a venv" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_host_that_ends_meanwhile_leaves_no_venv_and_nothing_running(
    inventory: Callable[..., str],
    wheel_folder: Path,
    tmp_path: Path,
    running: Running,
    eventually: Eventually,
    how: signal.Signals,
) -> None:
    place = tmp_path / "place" / f"venv-{os.getpid()}"
    argv = [sys.executable, "-m", "devices", "setup", "far", "--engine", "onnx", "--wheels", str(wheel_folder)]
    argv += ["--venv", str(place), "--inventory", inventory(python=sys.executable)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as host:
        assert host.stderr is not None
        for line in host.stderr:
            if line.startswith("making"):
                break
        eventually(lambda: running(f"{place}.partial-"))
        host.send_signal(how)
        assert host.wait(30) == (130 if how == signal.SIGINT else -how)
        if how == signal.SIGINT:
            assert host.stderr.read() == "interrupted: nothing was left running\n"
    eventually(lambda: running(f"{place}.partial-") == [])
    eventually(lambda: not list((tmp_path / "place").iterdir()))
    eventually(lambda: not list((tmp_path / "work" / "wheels").iterdir()))


def test_a_network_that_is_cut_meanwhile_leaves_no_venv(
    through: MakeDevice, network: Any, wheel_folder: Path, tmp_path: Path, eventually: Eventually
) -> None:
    def cut(line: str) -> None:
        if line.startswith("making"):
            network.cut()

    with pytest.raises(ConnectionFailedError, match="far: ssh to edge-loopback failed"):
        set_up(through(), Order("onnx", str(tmp_path / "place" / "venv"), wheels=wheel_folder), cut)
    eventually(lambda: list((tmp_path / "place").iterdir()) == [])
    eventually(lambda: list((tmp_path / "work" / "wheels").iterdir()) == [])


def test_a_device_that_hears_nothing_of_its_host_stops_by_itself(
    far: MakeDevice, wheel_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "_HOST_SILENCE_S", 0.2)  # a heartbeat comes every ten seconds
    with pytest.raises(DeviceError, match="far: the host is gone"):
        set_up(far(), Order("onnx", str(tmp_path / "place" / "venv"), wheels=wheel_folder), lambda _: None)
    assert list((tmp_path / "place").iterdir()) == []
    assert list((tmp_path / "work" / "wheels").iterdir()) == []


def test_this_machine_is_a_device_too(made_venv: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"local: .* is there already and does not run tflite \(.*No module named"):
        set_up(LocalDevice(tmp_path / "work"), Order("tflite", str(made_venv)), lambda _: None)
    with pytest.raises(DeviceError, match=r"local: no Python 3\.11 or newer there \(/bin/true does not run\)"):
        set_up(LocalDevice(tmp_path / "work", "/bin/true"), Order("tflite", str(made_venv)), lambda _: None)


def test_a_venv_that_died_in_the_making_is_cleared_away(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-S", "-c", ""])
    dead.wait()
    alive = f"venv.partial-{os.getpid()}-0123abcd"
    for name in (f"venv.partial-{dead.pid}-0123abcd", alive, "venv.partial-mine"):
        (tmp_path / name).mkdir()
    venv._remove_abandoned(tmp_path / "venv")
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive, "venv.partial-mine"]


def test_the_lines_to_add_to_an_inventory_hold_any_name() -> None:
    for name in ("pi5", "pi 5", 'a"b', "größe 🐢", "a.b", "x\x7fy\n", "$(touch x)", ""):
        fields = {"host": name, "python": "~/a 'b' \\ \"c\"/bin/python"}
        assert tomllib.loads(toml_entry(name, fields)) == {"device": {name: fields}}


def _state(folder: Path) -> dict[str, int]:
    """Every file of a venv but what Python compiles on its own, with the time it was written."""
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}
