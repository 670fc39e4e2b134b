"""Which wheels fit a device, worked out from what it reports about itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devices import DeviceError
from devices.engines import ENGINES, recipes
from devices.wheels import Target, download, fitting, target, unpacked_bytes

MakeWheel = Callable[..., Path]


def _facts(**changed: Any) -> dict[str, Any]:
    """A Raspberry Pi 5 with the 64-bit Raspberry Pi OS 12."""
    pi = {
        "python": "3.11.2",
        "executable": "/usr/bin/python3",
        "abi": "cp311",
        "architecture": "aarch64",
        "pointer_bits": 64,
        "libc": "glibc 2.36",
    }
    return {**pi, **changed}


PI5 = Target("3.11.2", "aarch64", 36)
PI_32 = Target("3.11.2", "armv7l", 36)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, PI5),
        ({"pointer_bits": 32}, PI_32),  # 32-bit system on a 64-bit kernel
        ({"pointer_bits": 32, "architecture": "armv7l"}, PI_32),
        ({"pointer_bits": 32, "architecture": "armv8l"}, PI_32),
        ({"architecture": "x86_64", "libc": "glibc 2.41"}, Target("3.11.2", "x86_64", 41)),
        ({"python": "3.13.5", "abi": "cp313"}, Target("3.13.5", "aarch64", 36)),
        ({"python": "3.14.0rc2+", "abi": "cp314"}, Target("3.14.0rc2+", "aarch64", 36)),
    ],
)  # fmt: skip
def test_a_device_s_facts_say_what_its_wheels_are_for(changed: dict[str, Any], expected: Target) -> None:
    assert target(_facts(**changed)) == expected


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"python": "3.9.2", "abi": "cp39"}, "/usr/bin/python3 is Python 3.9.2, expected 3.11 or newer, as in"),
        ({"python": "3.13.1", "abi": "cp313t"}, "is a special build (cp313t), expected a plain CPython"),
        ({"abi": "pypy311"}, "is a special build (pypy311)"),
        ({"libc": "musl"}, "its C library is musl, expected glibc 2.17 or newer: the engines are not"),
        ({"libc": "musl 1.2.5"}, "its C library is musl 1.2.5, expected glibc"),
        ({"libc": None}, "its C library is unknown, expected glibc"),
        ({"libc": "glibc 2.12"}, "its C library is glibc 2.12, expected glibc 2.17 or newer"),
        ({"architecture": "armv6l", "pointer_bits": 32}, "its processor is armv6l with a 32-bit Python, expected"),
        ({"architecture": "i686", "pointer_bits": 32}, "its processor is i686 with a 32-bit Python"),
        ({"architecture": "x86_64", "pointer_bits": 32}, "its processor is x86_64 with a 32-bit Python"),
        ({"architecture": None, "pointer_bits": None}, "its processor is None with a None-bit Python"),
        ({"architecture": "riscv64"}, "its processor is riscv64 with a 64-bit Python"),
    ],
)  # fmt: skip
def test_a_device_that_no_engine_is_built_for_is_refused_in_one_line(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(DeviceError) as raised:
        target(_facts(**changed))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_platform_tags_go_down_from_the_device_s_glibc_to_the_oldest_of_its_machine() -> None:
    assert PI5.platforms[:2] == ("manylinux_2_36_aarch64", "manylinux_2_35_aarch64")
    assert PI5.platforms[-3:] == ("manylinux_2_17_aarch64", "manylinux2014_aarch64", "linux_aarch64")
    assert len(PI5.platforms) == 22
    assert all(tag.endswith("_armv7l") for tag in PI_32.platforms)
    x86 = Target("3.12.3", "x86_64", 17).platforms
    assert x86[:2] == ("manylinux_2_17_x86_64", "manylinux2014_x86_64")
    assert x86[-3:] == ("manylinux_2_5_x86_64", "manylinux1_x86_64", "linux_x86_64")
    assert "manylinux2010_x86_64" in x86


def test_platform_tags_are_those_that_pip_itself_would_take_here() -> None:
    tags = pytest.importorskip("packaging.tags")
    from devices.probe import facts

    here = target(facts())
    theirs = {tag.platform for tag in tags.sys_tags()} - {"any"}
    assert set(here.platforms) == {tag for tag in theirs if "_" in tag}
    for tag in tags.sys_tags():
        assert here.runs(f"x-1-{tag.interpreter}-{tag.abi}-{tag.platform}.whl") or _is_of_an_old_python(tag)


def _is_of_an_old_python(tag: Any) -> bool:
    """pip still takes pure wheels for one old Python 3 alone (py30 to py310), which nobody makes."""
    return bool(re.fullmatch(r"py3\d*|py2|cp3\d*", tag.interpreter)) and tag.abi == "none"


@pytest.mark.parametrize(
    ("wheel", "pi5", "pi_32"),
    [
        ("ai_edge_litert-2.3.0-cp311-cp311-manylinux_2_27_aarch64.whl", True, False),
        ("ai_edge_litert-2.3.0-cp313-cp313-manylinux_2_27_aarch64.whl", False, False),
        ("ai_edge_litert-2.3.0-cp311-cp311-manylinux_2_27_x86_64.whl", False, False),
        ("numpy-2.4.6-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl", True, False),
        ("numpy-2.4.6-cp311-cp311-manylinux_2_38_aarch64.whl", False, False),
        ("numpy-2.4.6-cp311-cp311-musllinux_1_2_aarch64.whl", False, False),
        ("numpy-2.4.6-cp311-cp311t-manylinux_2_27_aarch64.whl", False, False),
        ("tflite_runtime-2.14.0-cp311-cp311-manylinux_2_34_armv7l.whl", False, True),
        ("numpy-1.26.4-cp311-cp311-linux_armv7l.whl", False, True),
        ("protobuf-7.36.2-cp310-abi3-manylinux2014_aarch64.whl", True, False),
        ("protobuf-7.36.2-cp312-abi3-manylinux2014_aarch64.whl", False, False),
        ("flatbuffers-25.12.19-py2.py3-none-any.whl", True, True),
        ("tqdm-4.70.1-1-py3-none-any.whl", True, True),
        ("old-1.0-py2-none-any.whl", False, False),
        ("openvino-2026.4-20999-cp311-cp311-manylinux_2_31_aarch64.whl", True, False),
        ("numpy-2.4.6.tar.gz", False, False),
        ("nonsense.whl", False, False),
    ],
)
def test_a_wheel_s_name_says_where_it_runs(wheel: str, pi5: bool, pi_32: bool) -> None:
    assert (PI5.runs(wheel), PI_32.runs(wheel)) == (pi5, pi_32)


def test_every_engine_has_a_recipe_for_64_bit_and_only_tflite_for_32() -> None:
    for engine in ENGINES:
        assert all({"numpy", "pillow"} <= _names(recipe.requirements) for recipe in recipes(engine, "aarch64"))
    assert [recipe.engine_package for recipe in recipes("tflite", "aarch64")] == ["ai-edge-litert", "tflite-runtime"]
    (only,) = recipes("tflite", "armv7l")
    assert only.engine_package == "tflite-runtime"
    assert "numpy>=1.23,<2" in only.requirements
    for engine in ("onnx", "openvino", "ncnn", "mnn"):
        with pytest.raises(DeviceError, match="is published for 32-bit ARM: use --engine tflite"):
            recipes(engine, "armv7l")
    with pytest.raises(DeviceError, match="no engine 'coral': known are onnx, openvino, tflite, ncnn, mnn"):
        recipes("coral", "aarch64")


def test_only_wheels_that_fit_are_taken(wheel_folder: Path, tmp_path: Path, make_wheel: MakeWheel) -> None:
    for path in wheel_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    make_wheel(tmp_path, "numpy-2.0-cp313-cp313-manylinux_2_27_aarch64", {})
    (tmp_path / "notes.txt").write_text("not a wheel")
    recipe, files = fitting(tmp_path, PI5, recipes("onnx", "aarch64"))
    assert recipe.engine_package == "onnxruntime"
    assert set(files) == {path.name for path in wheel_folder.iterdir()}
    assert unpacked_bytes(files) == sum(_unpacked(path) for path in files.values())


def test_a_folder_for_another_machine_is_refused_with_what_it_has(
    wheel_folder: Path, tmp_path: Path, make_wheel: MakeWheel
) -> None:
    for path in wheel_folder.glob("[!o]*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    wrong = make_wheel(tmp_path, "onnxruntime-1.31.0-cp311-cp311-manylinux_2_27_x86_64", {}).name
    with pytest.raises(DeviceError) as raised:
        fitting(tmp_path, PI5, recipes("onnx", "aarch64"))
    assert str(raised.value) == (
        f"{tmp_path} lacks onnxruntime for Python 3.11.2 on aarch64 with glibc 2.36 (it has only {wrong}): "
        "fill a new folder: --offline --wheels NEW-FOLDER"
    )
    with pytest.raises(DeviceError, match=r"there is no folder .*none: add --offline to fill it"):
        fitting(tmp_path / "none", PI5, recipes("onnx", "aarch64"))


def test_a_wheel_that_is_cut_short_is_refused(tmp_path: Path, make_wheel: MakeWheel) -> None:
    wheel = make_wheel(tmp_path, "numpy-1.26.4-py3-none-any", {"numpy.py": "x" * 1000})
    wheel.write_bytes(wheel.read_bytes()[:200])
    with pytest.raises(DeviceError, match="is not a whole wheel"):
        unpacked_bytes({wheel.name: wheel})


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that this machine's pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    return folder


def test_wheels_are_downloaded_for_the_device_and_not_for_this_machine(
    index: Path, tmp_path: Path, make_wheel: MakeWheel
) -> None:
    mine = f"cp3{sys.version_info[1]}"
    pi, old_pi = "cp311-cp311-manylinux_2_34_armv7l", "cp39-cp39-linux_armv7l"
    for tags in (f"{mine}-{mine}-manylinux_2_17_x86_64", pi, old_pi):
        make_wheel(index, f"tflite_runtime-2.14.0-{tags}", {}, requires=["numpy"])
        make_wheel(index, f"numpy-1.26.4-{tags}", {})
    make_wheel(index, "numpy-2.4.6-cp311-cp311-manylinux_2_34_armv7l", {})
    make_wheel(index, "pillow-11.0-cp311-cp311-linux_armv7l", {})
    said: list[str] = []
    download(PI_32, recipes("tflite", "armv7l"), tmp_path / "wheels", said.append)
    assert sorted(path.name for path in (tmp_path / "wheels").iterdir()) == [
        "numpy-1.26.4-cp311-cp311-manylinux_2_34_armv7l.whl",
        "pillow-11.0-cp311-cp311-linux_armv7l.whl",
        "tflite_runtime-2.14.0-cp311-cp311-manylinux_2_34_armv7l.whl",
    ]
    assert said == ["downloading tflite-runtime for Python 3.11.2 on armv7l with glibc 2.36"]


def test_the_second_choice_is_said_and_taken_and_none_at_all_leaves_nothing(
    index: Path, tmp_path: Path, make_wheel: MakeWheel
) -> None:
    make_wheel(index, "tflite_runtime-2.14.0-cp311-cp311-manylinux_2_34_aarch64", {})
    make_wheel(index, "numpy-1.26.4-py3-none-any", {})
    said: list[str] = []
    with pytest.raises(DeviceError, match=r"no wheels for Python 3\.11\.2 on aarch64 .*ai-edge-litert.*tflite-runtime"):
        download(PI5, recipes("tflite", "aarch64"), tmp_path / "wheels", said.append)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert said[-1] == "no tflite-runtime for Python 3.11.2 on aarch64 with glibc 2.36"
    make_wheel(index, "pillow-11.0-py3-none-any", {})
    download(PI5, recipes("tflite", "aarch64"), tmp_path / "wheels", said.append)
    assert said[-2] == "no ai-edge-litert for Python 3.11.2 on aarch64 with glibc 2.36"
    assert len(list((tmp_path / "wheels").iterdir())) == 3


def test_what_pypi_lacks_for_32_bit_arm_is_named(index: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"PIP_EXTRA_INDEX_URL to the one in /etc/pip\.conf"):
        download(PI_32, recipes("tflite", "armv7l"), tmp_path / "wheels", lambda _: None)


def _names(requirements: tuple[str, ...]) -> set[str]:
    return {re.split("[<>=]", requirement)[0] for requirement in requirements}


def _unpacked(path: Path) -> int:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        return sum(len(archive.read(name)) for name in archive.namelist())
