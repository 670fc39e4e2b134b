"""Names and paths of any kind arrive as they are: nothing is evaluated, by no shell, here or there.

Every test holds a canary: a file that would appear if some text were run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devices import DeviceError, InventoryError, SshDevice, open_device
from devices.__main__ import main
from devices.inventory import toml_entry

MakeDevice = Callable[..., SshDevice]
Wrapper = Callable[[Path, str], str]

# `{}` is the canary. No slash: each is used as one part of a path, too.
AWKWARD = {
    "command": "$(touch {})",
    "backticks": "`touch {}`",
    "variable": "${{IFS}}$HOME ~",
    "semicolon": "a;touch {};b",
    "pipe": "a|touch {}&&touch {}||x>{}",
    "single quote": "it's'; touch {} '",
    "double quote": 'say "x"; touch {} "',
    "newline": "a\ntouch {}\n",
    "return": "a\rtouch {}",
    "dash": "-rf",
    "option": "--files-from=touch {}",
    "ssh option": "-oProxyCommand=touch {}",
    "glob": "*?[a-z]{{a,b}}",
    "backslash": "a\\'$(touch {})\\",
    "unicode": "größe 日本 🐢 \u202e",
    "history": "!touch {} #",
    "percent": "%h %C $%s",
    "spaces": "  two  words  ",
}


@pytest.fixture(params=list(AWKWARD))
def awkward(request: pytest.FixtureRequest, canary: str) -> str:
    """One text that something could stumble over."""
    return AWKWARD[request.param].format(*[canary] * 3)


@pytest.fixture(params=[0, 1])
def worst(request: pytest.FixtureRequest, canary: str) -> str:
    """One text that nearly everything could stumble over, beginning as an option does, or with a quote."""
    texts = [text.format(*[canary] * 3) for text in AWKWARD.values()]
    return ("-".join(texts[:6]) if request.param else "'\n" + "".join(texts[6:]))[:120]


def test_a_workdir_and_the_names_of_pushed_folders_and_files_are_only_names(
    far: MakeDevice, tmp_path: Path, worst: str, canary: str
) -> None:
    names = [text.format(*[canary] * 3) for text in AWKWARD.values()]
    content = os.urandom(100)
    (tmp_path / "file").write_bytes(content)
    workdir = f"{tmp_path}/{worst}/work"
    device = far(workdir=workdir)
    files = {f"{name}/{name}": tmp_path / "file" for name in names}
    there = device.push(files, f"bundles/{worst}")
    assert there == f"{workdir}/bundles/{worst}" == device.push(files, f"bundles/{worst}")
    assert sorted(path.name for path in Path(there).iterdir()) == sorted(names)
    device.pull(there, tmp_path / "back" / worst)
    for name in names:
        assert (tmp_path / "back" / worst / name / name).read_bytes() == content


def test_a_python_s_path_and_a_device_s_name_are_only_names(
    sshd: Any, tmp_path: Path, worst: str, wrapper: Wrapper, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / worst
    folder.mkdir()
    fields = {"host": sshd.host, "ssh_config": str(sshd.ssh_config), "python": wrapper(folder / worst, "")}
    inventory = tmp_path / "devices.toml"
    inventory.write_text(toml_entry(worst, fields))
    assert main(["probe", "--json", "--inventory", str(inventory), "--", worst]) == 0
    assert json.loads(capsys.readouterr().out)["python"].startswith("3.")
    inventory.write_text(toml_entry(worst, {**fields, "python": f"/no/{worst}"}))
    assert main(["probe", "--inventory", str(inventory), "--", worst]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "does not run there" in err


def test_every_device_s_name_can_be_listed(tmp_path: Path, awkward: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "devices.toml").write_text(toml_entry(awkward, {"host": "a"}))
    assert main(["list", "--json", "--inventory", str(tmp_path / "devices.toml")]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == [awkward]


def test_a_name_that_no_inventory_has_is_a_plain_destination_or_none(awkward: str, tmp_path: Path) -> None:
    (tmp_path / "none.toml").write_text("")
    with pytest.raises(DeviceError, match="is no SSH destination: give user@host or an ssh alias"):
        open_device(awkward, tmp_path / "none.toml")


def test_an_ssh_configuration_s_path_is_only_a_path(sshd: Any, tmp_path: Path, worst: str) -> None:
    sshd.config(tmp_path / worst)
    device = SshDevice("far", sshd.host, ssh_config=tmp_path / worst)
    assert device.run(["echo", worst], timeout_s=30).stdout == worst + "\n"
    device.close()


def test_an_inventory_s_path_is_only_a_path(tmp_path: Path, awkward: str) -> None:
    with pytest.raises(InventoryError, match="no inventory"):
        open_device("far", tmp_path / awkward)
    (tmp_path / awkward).write_text('[device.far]\nhost = "a"\n')
    assert open_device("far", tmp_path / awkward).name == "far"


def test_a_pushed_name_stays_in_its_folder(far: MakeDevice, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    device = far()
    for name in ("", "./../out", "a\0b"):
        with pytest.raises(DeviceError, match="far: cannot push"):
            device.push({name: tmp_path / "file"}, "bundles/a")
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]


def test_control_characters_from_a_device_do_not_reach_the_terminal(
    far: MakeDevice, tmp_path: Path, wrapper: Wrapper
) -> None:
    python = wrapper(tmp_path / "python", r"printf 'bad \033]0;title\007 \033[2J end\n' >&2; exit 1")
    with pytest.raises(DeviceError) as raised:
        far(python=python).facts()
    assert "\033" not in str(raised.value)
    assert "bad" in str(raised.value)
