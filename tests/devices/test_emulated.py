"""The emulated Pi, as far as it goes without booting one; `tests/bench/test_emulated_pi.py` boots it."""

from __future__ import annotations

import gzip
import json
import lzma
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from devices.emulated import image, initramfs, machine, tools
from devices.emulated.__main__ import main
from devices.emulated.boards import BOARDS, SUITES, engine_requirements
from devices.inventory import load_inventory

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def built(tmp_path: Path) -> Callable[[], image.Image]:
    """Puts into the cache what looks like an image."""

    def make() -> image.Image:
        folder = image._folder(tmp_path, "bookworm")
        folder.mkdir()
        (folder / "host_key.pub").write_text("ssh-ed25519 AAAAhost emulated-host_key\n")
        (folder / "image.json").write_text("{}")
        return image.Image(folder)

    return make


@pytest.fixture
def false_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a QEMU on the PATH that runs some shell instead; the first argument of a boot is `-M virt`."""

    def write(script: str) -> None:
        folder = tmp_path / "programs"
        folder.mkdir()
        for name, text in (("qemu-system-aarch64", script), ("fdtput", ""), ("ssh", "")):
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return write


def _module(folder: Path, name: str, depends: str, packed: bool = False) -> Path:
    content = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=" + name.encode() + b"\0"
    path = folder / f"{name}.ko{'.xz' if packed else ''}"
    path.write_bytes(lzma.compress(content) if packed else content)
    return path


def test_drivers_are_loaded_after_what_they_depend_on(tmp_path: Path) -> None:
    files = {
        "net": _module(tmp_path, "net", "ring,fail-over"),
        "ring": _module(tmp_path, "ring", "bus", packed=True),
        "fail_over": _module(tmp_path, "fail-over", ""),
        "bus": _module(tmp_path, "bus", ""),
    }
    order = list(initramfs.in_loading_order(["net", "bus", "built_in"], files))
    assert sorted(order) == ["bus", "fail_over", "net", "ring"]
    assert order.index("bus") < order.index("ring") < order.index("net")
    assert order.index("fail_over") < order.index("net")


def test_a_soft_dependency_beside_a_hard_one_is_found(tmp_path: Path) -> None:
    path = tmp_path / "ext4.ko"
    path.write_bytes(b"\0depends=journal\0softdep=pre: sum cache\0")
    names = ("journal", "sum", "cache")
    files = {"ext4": path} | {name: _module(tmp_path, name, "") for name in names}
    assert set(initramfs.in_loading_order(["ext4"], files)) == {"ext4", *names}


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio to read the archive with: apt-get install cpio")
def test_cpio_reads_the_initial_ram_disk(tmp_path: Path) -> None:
    _module(tmp_path, "virtio_blk", "")
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"a program")
    packed = initramfs.initial_ram_disk(busybox, tmp_path, "#!/bin/busybox sh\n")
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["cpio", "-idm", "--quiet"], input=gzip.decompress(packed), cwd=out, check=True)
    assert (out / "init").read_text() == "#!/bin/busybox sh\n"
    assert (out / "init").stat().st_mode & 0o777 == 0o755
    assert (out / "modules/order").read_text() == "virtio_blk\n"
    assert (out / "modules/virtio_blk").read_bytes() == (tmp_path / "virtio_blk.ko").read_bytes()
    assert (out / "target").is_dir()


def test_every_engine_is_on_the_image() -> None:
    names = {re.split("[=>]", requirement)[0] for requirement in engine_requirements()}
    assert f"numpy=={np.__version__}" in engine_requirements()  # the same there as here
    assert names == {"numpy", "pillow", "onnxruntime", "openvino", "ai-edge-litert", "ncnn", "mnn"}
    assert SUITES["trixie"].target.runs("numpy-2.3.0-cp313-cp313-manylinux_2_27_aarch64.whl")
    assert not SUITES["bookworm"].target.runs("numpy-2.3.0-cp311-cp311-manylinux_2_27_x86_64.whl")


@pytest.mark.parametrize(
    ("command", "packages"),
    [("build", "mmdebstrap e2fsprogs openssh-client"), ("up", "qemu-system-arm device-tree-compiler openssh-client")],
)
def test_what_is_not_installed_is_named_with_its_package(
    command: str,
    packages: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    built: Callable[[], image.Image],
) -> None:
    if command == "up":
        built()
    monkeypatch.setattr(tools.shutil, "which", lambda program, path: None)
    assert main([command, "--cache", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not installed here: ")
    assert line.endswith(f"apt-get install --no-install-recommends {packages}")


def test_without_an_image_there_is_a_line_that_says_how_to_build_one(tmp_path: Path, capsys: Capture) -> None:
    assert main(["up", "--cache", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("python -m devices.emulated build\n")
    assert main(["status", "--cache", str(tmp_path)]) == 0
    assert main(["down", "--cache", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "ended: nothing ran\n"
    assert main(["down", "gone", "--cache", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: gone does not run; nothing does\n"


@pytest.mark.parametrize("name", ["local", "-x", "a b", "$(x)", "", "../up"])
def test_a_name_that_would_need_quoting_is_refused(name: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["up", "--", name])
    assert ended.value.code == 2


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("mmdebstrap", "mke2fs", "ssh-keygen"):
        (programs / name).write_text("#!/bin/sh\necho no mirror answers >&2\nexit 25\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    assert main(["build", "--cache", str(tmp_path / "cache")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == ("error: mmdebstrap failed (exit code 25): no mirror answers")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_machine_that_does_not_come_up_is_ended_and_forgotten(
    tmp_path: Path, capsys: Capture, built: Callable[[], image.Image], false_qemu: Callable[[str], None]
) -> None:
    built()
    false_qemu('case "$*" in *dumpdtb*) exit 0;; esac; echo cannot set up guest memory >&2; exit 1')
    assert main(["up", "--cache", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: qemu-system-aarch64 ended with exit code 1: cannot set up guest memory"
    )
    assert list((tmp_path / "running").iterdir()) == []


def test_a_machine_that_stays_silent_is_ended_with_the_last_words_of_its_console(
    tmp_path: Path, capsys: Capture, built: Callable[[], image.Image], false_qemu: Callable[[str], None]
) -> None:
    built()
    false_qemu('case "$*" in *dumpdtb*) exit 0;; esac; echo no disk > console.log; exec sleep 60')
    began = time.monotonic()
    assert main(["up", "--cache", str(tmp_path), "--timeout", "0.5"]) == 1
    assert time.monotonic() - began < 30
    assert "its console said last: 'no disk'" in capsys.readouterr().err
    assert list((tmp_path / "running").iterdir()) == []


def test_qemu_is_told_the_board_and_to_let_nobody_else_in(tmp_path: Path, built: Callable[[], image.Image]) -> None:
    made = machine.Machine("pi", tmp_path, "pi4", 4, False, 2240, 0)
    written: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "run_tool", lambda *argv: written.append([str(word) for word in argv]))
        argv = machine._qemu_argv(made, built(), BOARDS["pi4"])
        counted = machine._qemu_argv(
            machine.Machine("pi", tmp_path, "pi5", 1, True, 2240, 0), image.Image(tmp_path), BOARDS["pi5"]
        )
    assert "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:2240-:22" in argv
    assert argv[argv.index("-cpu") + 1] == "cortex-a72"
    assert any(word.endswith("snapshot=on") for word in argv)
    assert "-icount" not in argv
    assert counted[counted.index("-icount") + 1] == "shift=0,sleep=on"
    assert counted[counted.index("-cpu") + 1] == "cortex-a76"
    # What bench.machine knows it by is there whatever board it looks like.
    assert all(words[-1] == "linux,dummy-virt" for words in written if "compatible" in words)


def test_the_inventory_that_is_written_is_one(tmp_path: Path, built: Callable[[], image.Image]) -> None:
    folder = tmp_path / "run it's $(x)"
    folder.mkdir()
    made = machine.Machine("pi", folder, "pi5", 4, False, 2240, 0)
    machine._write_access(made, built())
    entry = load_inventory(made.inventory).entries["pi"]
    assert (entry.host, entry.python, entry.ssh_config) == ("pi", "/home/pi/venv/bin/python", made.ssh_config)
    assert tomllib.loads(made.entry)["device"]["pi"]["host"] == "pi"
    assert (folder / "known_hosts").read_text() == "[127.0.0.1]:2240 ssh-ed25519 AAAAhost\n"


def test_what_runs_is_found_and_ended_and_nothing_else(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "running" / "pi"
    folder.mkdir(parents=True)
    console = f"file:{folder / 'console.log'}"
    ours = subprocess.Popen(["/bin/sh", "-c", "while :; do sleep 0.2; done", "qemu", console])
    other = subprocess.Popen(["sleep", "60"])
    try:
        state = {"name": "pi", "folder": "", "board": "pi5", "cores": 4, "icount": False, "port": 2240}
        (folder / "machine.json").write_text(json.dumps({**state, "pid": ours.pid}))
        stale = tmp_path / "running" / "old"
        stale.mkdir()
        (stale / "machine.json").write_text(json.dumps({**state, "name": "old", "pid": other.pid}))
        assert main(["status", "--cache", str(tmp_path), "--json"]) == 0
        assert [one["name"] for one in json.loads(capsys.readouterr().out)["running"]] == ["pi"]
        assert main(["down", "--cache", str(tmp_path)]) == 0
        assert capsys.readouterr().out == "ended: pi\n"
        assert ours.poll() is not None
        assert other.poll() is None
        assert list((tmp_path / "running").iterdir()) == []
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()
