"""The inventory file, and which machine a name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices import (
    ConnectionFailedError,
    InventoryError,
    LocalDevice,
    SshDevice,
    chosen_names,
    load_inventory,
    open_device,
)

WHOLE = """
[device.pi5]
host = "pi@raspberrypi.local"
python = "~/venv/bin/python"
threads = 4
tags = ["kitchen", "fast"]
workdir = "/srv/edge"
ssh_config = "lab config"

[device."odd 'name'"]
host = "alias"
"""


def test_every_field_is_read(tmp_path: Path) -> None:
    file = _file(tmp_path, WHOLE)
    entries = load_inventory(file).entries
    pi5 = entries["pi5"]
    assert (pi5.host, pi5.python, pi5.threads) == ("pi@raspberrypi.local", "~/venv/bin/python", 4)
    assert (pi5.tags, pi5.workdir, pi5.ssh_config) == (("kitchen", "fast"), "/srv/edge", tmp_path / "lab config")
    odd = entries["odd 'name'"]
    assert (odd.host, odd.python, odd.threads, odd.tags, odd.ssh_config) == ("alias", "python3", None, (), None)


def test_the_folder_s_inventory_comes_before_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert load_inventory().entries == {}
    _file(tmp_path / "home" / ".config" / "edge-distill", '[device.far]\nhost = "a"')
    assert list(load_inventory().entries) == ["far"]
    _file(tmp_path, '[device.near]\nhost = "b"')
    assert list(load_inventory().entries) == ["near"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[device.pi5\n", "not valid TOML"),
        ("\udcff", "not valid TOML"),
        ('[devices.pi5]\nhost = "a"', "has devices at the top, expected only tables like"),
        ("device = 3", "has device at the top"),
        ("[device]\npi5 = 3", "is 3, expected a table"),
        ("[device.pi5]\n", "has no host"),
        ('[device.pi5]\nhost = ""', "has no host"),
        ('[device.pi5]\nhost = "a"\nport = 22', "has 'port', known fields are host, python, threads"),
        ('[device.pi5]\nhost = "a"\nthreads = "4"', "has threads = '4', expected int"),
        ('[device.pi5]\nhost = "a"\nthreads = true', "has threads = True, expected int"),
        ('[device.pi5]\nhost = "a"\nthreads = 0', "has threads = 0, expected at least 1"),
        ('[device.pi5]\nhost = "a"\nworkdir = ""', "has workdir = '', expected a path"),
        ('[device.pi5]\nhost = "a"\nworkdir = "work"', "has workdir = 'work', expected ~/NAME or an absolute path"),
        ('[device.pi5]\nhost = "a"\nworkdir = "-x"', "has workdir = '-x', expected ~/NAME or an absolute path"),
        ('[device.pi5]\nhost = "a"\nworkdir = "~pi/x"', "has workdir = '~pi/x', expected ~/NAME"),
        ('[device.pi5]\nhost = "a"\npython = " "', "has python = ' ', expected a path"),
        ('[device.pi5]\nhost = "a"\nssh_config = ""', "has ssh_config = '', expected a path"),
        ('[device.pi5]\nhost = "a"\ntags = [1]', "expected a list of words"),
    ],
)
def test_a_malformed_inventory_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "devices.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InventoryError) as raised:
        load_inventory(file)
    assert says in str(raised.value)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_inventory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="no inventory"):
        load_inventory(tmp_path / "none.toml")


def test_a_name_means_the_listed_machine_then_this_one_then_a_destination(tmp_path: Path) -> None:
    file = _file(tmp_path, WHOLE)
    listed, local, direct = (open_device(name, file) for name in ("pi5", "local", "me@there"))
    assert isinstance(listed, SshDevice)
    assert (listed.name, listed._host, listed.threads) == ("pi5", "pi@raspberrypi.local", 4)
    assert isinstance(local, LocalDevice)
    assert isinstance(direct, SshDevice)
    assert (direct.name, direct._host) == ("me@there", "me@there")


def test_a_name_that_nobody_knows_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    device = open_device("pi55.invalid", _file(tmp_path, WHOLE))
    with pytest.raises(ConnectionFailedError) as raised:
        device.facts()
    device.close()
    assert "resolve" in str(raised.value)
    assert str(raised.value).endswith("devices.toml lists pi5, odd 'name'; user@host and ssh aliases work too")


def _file(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "devices.toml"
    file.write_text(text)
    return file


def test_names_and_a_tag_stand_for_several_devices_each_once(tmp_path: Path) -> None:
    file = _file(tmp_path, WHOLE + '[device."a,b"]\nhost = "c"\ntags = ["fast"]\n')
    assert chosen_names(None, None, file) == ["local"]
    assert chosen_names("pi5,me@there,pi5", None, file) == ["pi5", "me@there"]
    assert chosen_names("a,b", None, file) == ["a,b"]
    assert chosen_names("local", "fast", file) == ["local", "pi5", "a,b"]
    with pytest.raises(InventoryError, match=r"no device has the tag 'attic': .*devices.toml lists fast, kitchen"):
        chosen_names(None, "attic", file)
    for names in ("", "pi5,", ",pi5", "pi5,,local"):
        with pytest.raises(InventoryError, match="has an empty name"):
            chosen_names(names, None, file)


def test_a_meter_s_file_must_have_a_whole_path(tmp_path: Path) -> None:
    file = _file(tmp_path, '[device.a]\nhost = "a"\nmeter = "/run/meter"')
    assert open_device("a", file).meter == "/run/meter"
    with pytest.raises(InventoryError, match="has meter = 'meter', expected ~/NAME or an absolute path"):
        load_inventory(_file(tmp_path, '[device.a]\nhost = "a"\nmeter = "meter"'))
