from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from deploy.bundle import Bundle, InputSpec, Manifest, OutputSpec, find_bundles, sha256_file
from deploy.cli import run_command, unused_path, whole_folder
from deploy.errors import BundleError, DeployError


def _write_bundle(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"model bytes")
    manifest = Manifest(
        engine="onnx",
        precision="fp32",
        files={"model.onnx": sha256_file(folder / "model.onnx")},
        model_file="model.onnx",
        input=InputSpec("pixels", 64, 64),
        outputs=(OutputSpec("box_p3", "box", 8, 64, "NCHW"), OutputSpec("class_p3", "class", 8, 2, "NCHW")),
        reg_max=16,
        class_names=("a b", "ü<script>"),
        student={"name": "s", "sha256": "0" * 64},
        tools={"torch": "2"},
    )
    (folder / "manifest.json").write_text(dataclasses.replace(manifest, **changes).to_json(), encoding="utf-8")
    return folder


def test_a_manifest_survives_writing_and_reading(tmp_path: Path) -> None:
    bundle = Bundle.open(_write_bundle(tmp_path / "b"))
    assert Manifest.from_json(bundle.manifest.to_json(), "again") == bundle.manifest
    assert bundle.size_bytes == len(b"model bytes")
    assert bundle.model_path.read_bytes() == b"model bytes"


def test_a_changed_byte_is_refused_with_the_file_named(tmp_path: Path) -> None:
    folder = _write_bundle(tmp_path / "b")
    (folder / "model.onnx").write_bytes(b"model bytez")
    with pytest.raises(BundleError, match=r"model\.onnx has SHA-256 .* the file was changed"):
        Bundle.open(folder)


def test_a_missing_model_file_is_refused(tmp_path: Path) -> None:
    folder = _write_bundle(tmp_path / "b")
    (folder / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks model\.onnx"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "schema 'list'"),
        ('{"schema": 99}', "schema 99, this version reads 1"),
        ('{"schema": 1}', "incomplete"),
    ],
)
def test_a_broken_manifest_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    folder = _write_bundle(tmp_path / "b")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_not_text_is_refused(tmp_path: Path) -> None:
    folder = _write_bundle(tmp_path / "b")
    (folder / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="not UTF-8"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/file", ".."])
def test_a_manifest_cannot_reach_outside_its_folder(tmp_path: Path, name: str) -> None:
    folder = _write_bundle(tmp_path / "b", files={name: "0" * 64}, model_file=name)
    with pytest.raises(BundleError, match="expected a plain file name"):
        Bundle.open(folder)


def test_an_unknown_engine_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    folder = _write_bundle(tmp_path / "b", engine="tpu")
    with pytest.raises(BundleError, match="'tpu', known are onnx, openvino, tflite"):
        Bundle.open(folder)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no bundle"):
        Bundle.open(tmp_path)


def test_one_changed_byte_in_the_manifest_changes_the_bundle_hash(tmp_path: Path) -> None:
    first = Bundle.open(_write_bundle(tmp_path / "a"))
    second = Bundle.open(_write_bundle(tmp_path / "b"))
    third = Bundle.open(_write_bundle(tmp_path / "c", tools={"torch": "3"}))
    assert first.sha256 == second.sha256 != third.sha256


def test_unfinished_bundles_are_not_found(tmp_path: Path) -> None:
    whole = _write_bundle(tmp_path / "runs" / "whole")
    _write_bundle(tmp_path / "runs" / ".half.partial-1")
    assert find_bundles(tmp_path / "runs") == [whole]


def test_a_folder_is_absent_after_a_failure_and_whole_after_success(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "out") as folder:
        (folder / "all").write_text("x")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["all"]
    with pytest.raises(DeployError, match="already exists"), whole_folder(tmp_path / "out"):
        pass
    assert unused_path(tmp_path / "out") == tmp_path / "out-2"


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (DeployError("two\nlines"), 1, "error: two lines"),
        (OSError(28, "No space left on device", "/x/y"), 1, "error: [Errno 28] No space left on device: '/x/y'"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_become_one_line_and_an_exit_code(
    failure: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise failure

    assert run_command(command) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(words)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_a_manifest_is_json_with_sorted_keys(tmp_path: Path) -> None:
    text = (_write_bundle(tmp_path / "b") / "manifest.json").read_text(encoding="utf-8")
    keys = list(json.loads(text))
    assert keys == sorted(keys)
