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


def test_a_manifest_of_before_quantization_was_recorded_still_opens(tmp_path: Path) -> None:
    folder = _write_bundle(tmp_path / "b")
    fields = json.loads((folder / "manifest.json").read_text())
    assert (fields["schema"], fields.pop("quantization"), fields.pop("records")) == (2, None, {})
    (folder / "manifest.json").write_text(json.dumps({**fields, "schema": 1}))
    manifest = Bundle.open(folder).manifest
    assert (manifest.schema, manifest.quantization, manifest.records) == (1, None, {})


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
        ('{"schema": 99}', "schema 99, this version reads 1 and 2"),
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


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("precision", "int4", "precision is 'int4', expected one of fp32, fp16, bf16, w8, dynamic, w8a16, int8"),
        ("task", "pose", "task is 'pose', expected one of detect, segment, classify"),
        ("task", "segment", r"outputs of stride 8 is .*, expected one 'box' and one 'class' and one 'mask'"),
        ("task", "classify", "reg_max is 16, expected 0 for a classifier"),
        ("quantization", "all", "quantization is 'all', expected an object or null"),
        ("records", {"repair": 3}, r"records is \{'repair': 3\}, expected names with objects"),
        ("files", ["model.onnx"], r"files is \['model.onnx'\], expected file names"),
        ("files", {"model.onnx": 5}, r"files is \{'model.onnx': 5\}, expected file names"),
        ("model_file", ["model.onnx"], "model_file is .*, expected a file name"),
        ("reg_max", 1, "reg_max is 1, expected a whole number of at least 2"),
        ("reg_max", 16.5, "reg_max is 16.5, expected"),
        ("class_names", "ab", "class_names is 'ab', expected a list of strings"),
        ("class_names", ["a", 7], r"class_names is \('a', 7\), expected a list of strings"),
        ("input.height", -64, "input.height is -64, expected a positive multiple of 32"),
        ("input.width", 65, "input.width is 65, expected a positive multiple of 32"),
        ("input.width", "64", "input.width is '64', expected"),
        ("input.height", True, "input.height is True, expected"),
        ("input.layout", "HWC", "input.layout is 'HWC', expected one of NHWC, NCHW"),
        ("input.dtype", "complex64", "input.dtype is 'complex64', expected one of uint8, float32, int8"),
        ("input.scale", 0, "input.scale is 0, expected a number above 0"),
        ("input.scale", float("nan"), "input.scale is nan, expected a number above 0"),
        ("input.fit", "crop", "input.fit is 'crop', expected one of letterbox"),
        ("input.resize", 64, "input.resize is 64, expected null for 'letterbox'"),
        ("engine_options", {"arena": 1.5}, "engine_options is .*, expected names with texts, whole numbers"),
        ("engine_options", None, "engine_options is None, expected names with"),
        ("input.pad_value", 256, r"input.pad_value is 256, expected a whole number in 0\.\.255"),
        ("outputs", [], r"outputs is \[\], expected the tensors"),
        ("outputs.1.meaning", "mask", r"outputs\[1\].meaning is 'mask', expected one of box, class"),
        ("outputs.0.layout", None, r"outputs\[0\].layout is None, expected one of NHWC, NCHW"),
        ("outputs.0.stride", 0, r"outputs\[0\].stride is 0, expected a whole number of at least 1"),
        ("outputs.1.stride", 16, r"outputs of stride 8 is \['box'\], expected one 'box' and one 'class'"),
        ("outputs.0.channels", 60, r"outputs\[0\].channels is 60, expected 64 for 'box'"),
        ("outputs.1.channels", 3, r"outputs\[1\].channels is 3, expected 2 for 'class'"),
        ("thresholds.conf", 1.5, r"thresholds.conf is 1.5, expected a number in 0\.\.1"),
        ("thresholds.iou", "0.7", r"thresholds.iou is '0.7', expected a number in 0\.\.1"),
        ("thresholds.max_det", 0, "thresholds.max_det is 0, expected a whole number of at least 1"),
        ("student", None, "student is None, expected an object"),
        ("tools", {"torch": 2}, "tools is .*, expected names with their versions"),
        ("calibration", [1], r"calibration is \[1\], expected an object or null"),
        ("verified", "yes", "verified is 'yes', expected an object or null"),
        ("data_yaml", 3, "data_yaml is 3, expected a path or null"),
        ("data_root", 3, "data_root is 3, expected a path or null"),
        ("input", 3, "incomplete"),
        ("outputs", "ab", "incomplete"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_with_its_field(
    tmp_path: Path, path: str, value: object, message: str
) -> None:
    _assert_refused(_write_bundle(tmp_path / "b") / "manifest.json", path, value, message)


_CLASSIFIER: dict[str, object] = {
    "task": "classify",
    "reg_max": 0,
    "input": InputSpec("pixels", 28, 30, fit="crop", resize=32),
    "outputs": (OutputSpec("logits", "logits", 0, 2, "NC"),),
}
_SEGMENTER: dict[str, object] = {
    "task": "segment",
    "outputs": (
        OutputSpec("box_p3", "box", 8, 64, "NCHW"),
        OutputSpec("class_p3", "class", 8, 2, "NCHW"),
        OutputSpec("mask_p3", "mask", 8, 32, "NCHW"),
        OutputSpec("prototype", "prototype", 4, 32, "NCHW"),
    ),
}


@pytest.mark.parametrize("changes", [_CLASSIFIER, _SEGMENTER], ids=["classify", "segment"])
def test_a_manifest_of_another_task_survives_writing_and_reading(tmp_path: Path, changes: dict[str, object]) -> None:
    options = {"arena": False, "level": "all", "spin": 3}
    bundle = Bundle.open(_write_bundle(tmp_path / "b", engine_options=options, data_root="/data", **changes))
    assert Manifest.from_json(bundle.manifest.to_json(), "again") == bundle.manifest
    assert bundle.manifest.engine_options == options


def test_a_manifest_from_before_the_tasks_still_opens(tmp_path: Path) -> None:
    manifest = _write_bundle(tmp_path / "b") / "manifest.json"
    fields = json.loads(manifest.read_text(encoding="utf-8"))
    del fields["engine_options"], fields["data_root"], fields["input"]["fit"], fields["input"]["resize"]
    manifest.write_text(json.dumps(fields), encoding="utf-8")
    opened = Bundle.open(manifest).manifest
    assert (opened.task, opened.input.fit, opened.input.resize) == ("detect", "letterbox", None)
    assert opened.engine_options == {}


@pytest.mark.parametrize(
    ("changes", "path", "value", "message"),
    [
        (_CLASSIFIER, "reg_max", False, "reg_max is False, expected 0 for a classifier"),
        (_CLASSIFIER, "input.fit", "letterbox", "input.fit is 'letterbox', expected one of crop, stretch"),
        (_CLASSIFIER, "input.fit", "stretch", "input.resize is 32, expected null for 'stretch'"),
        (_CLASSIFIER, "input.resize", 29, "input.resize is 29, expected a whole number of at least 30"),
        (_CLASSIFIER, "input.resize", None, "input.resize is None, expected a whole number of at least 30"),
        (_CLASSIFIER, "input.height", 0, "input.height is 0, expected a positive multiple of 1"),
        (_CLASSIFIER, "outputs.0.meaning", "class", r"outputs\[0\].meaning is 'class', expected one of logits"),
        (_CLASSIFIER, "outputs.0.layout", "NCHW", r"outputs\[0\].layout is 'NCHW', expected one of NC"),
        (_CLASSIFIER, "outputs.0.stride", 8, r"outputs\[0\].stride is 8, expected 0 for 'logits'"),
        (_CLASSIFIER, "outputs.0.channels", 3, r"outputs\[0\].channels is 3, expected 2 for 'logits'"),
        (_SEGMENTER, "outputs.3.stride", 8, r"outputs\[3\].stride is 8, expected 4 for 'prototype'"),
        (_SEGMENTER, "outputs.2.channels", 16, r"channels of the masks is \[16\], expected 32, one per prototype"),
        (_SEGMENTER, "outputs.2.meaning", "prototype", r"outputs\[2\].stride is 8, expected 4 for 'prototype'"),
        (_SEGMENTER, "outputs.3.channels", "32", r"outputs\[3\].channels is '32', expected a whole number"),
    ],
)
def test_a_wrong_value_in_a_manifest_of_another_task_is_refused_with_its_field(
    tmp_path: Path, changes: dict[str, object], path: str, value: object, message: str
) -> None:
    _assert_refused(_write_bundle(tmp_path / "b", **changes) / "manifest.json", path, value, message)


def _assert_refused(manifest: Path, path: str, value: object, message: str) -> None:
    fields = json.loads(manifest.read_text(encoding="utf-8"))
    *parents, last = path.split(".")
    place = fields
    for name in parents:
        place = place[int(name) if name.isdecimal() else name]
    place[last] = value
    manifest.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(manifest)
    assert str(caught.value).startswith(str(manifest))
    assert "\n" not in str(caught.value)


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
