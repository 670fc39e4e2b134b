"""`python -m devices`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from devices.__main__ import main


@pytest.fixture
def inventory(sshd: Any, tmp_path: Path) -> str:
    file = tmp_path / "devices.toml"
    file.write_text(
        f'[device.far]\nhost = "{sshd.host}"\npython = "{sys.executable}"\ntags = ["test"]\nthreads = 1\n'
        f'ssh_config = "{sshd.ssh_config}"\nworkdir = "{tmp_path}/work"\n'
        f'[device.bad]\nhost = "{sshd.host}"\nssh_config = "{tmp_path}/none"\n'
    )
    return str(file)


def test_list_shows_every_machine_and_what_to_type_next(inventory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--inventory", inventory]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"far  edge-loopback  {sys.executable}  1 threads  test",
        "bad  edge-loopback  python3  all cores",
    ]
    assert err == "next: python -m devices probe far\n"


def test_list_as_json_holds_every_field(inventory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json", "--inventory", inventory]) == 0
    far = json.loads(capsys.readouterr().out)[0]
    assert (far["name"], far["threads"], far["tags"]) == ("far", 1, ["test"])


def test_an_empty_inventory_says_how_to_fill_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["list"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "write a devices.toml" in err


def test_probe_shows_what_a_machine_has(inventory: str, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy

    assert main(["probe", "far", "--inventory", inventory]) == 0
    out, err = capsys.readouterr()
    assert f"numpy {numpy.__version__}" in out
    assert "not installed tflite-runtime" in out
    assert err == "next: python bench/run.py --device far\n"
    assert main(["probe", "far", "--json", "--inventory", inventory]) == 0
    assert json.loads(capsys.readouterr().out)["packages"]["numpy"] == numpy.__version__


@pytest.mark.parametrize(
    ("name", "says"), [("bad", "none"), ("nowhere.invalid", "lists far, bad"), ("-x", "no SSH destination")]
)
def test_a_machine_that_cannot_be_probed_gives_one_line(
    name: str, says: str, inventory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "--inventory", inventory, "--", name]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1


def test_help_and_misuse_exit_as_promised() -> None:
    for argv, code in (["--help"], 0), (["probe", "--help"], 0), ([], 2), (["lits"], 2), (["probe"], 2):
        done = subprocess.run([sys.executable, "-m", "devices", *argv], capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert "usage: python -m devices" in (done.stdout if code == 0 else done.stderr)
