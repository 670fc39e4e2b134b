"""`--precision auto`: which candidate is kept, what is said of the others, and what the manifest keeps of it."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("ultralytics", reason="deploying needs the [train] extra")

from deploy import precision_auto
from deploy.bundle import MANIFEST_NAME, Bundle
from deploy.errors import VerificationError
from deploy.onnx import TARGET
from deploy.precision_auto import Candidate, build_auto_bundle, choose
from deploy.search.latency import Timing, time_bundles
from deploy.student import find_student

PRECISIONS = ("fp32", "fp16", "int8")


def _candidate(precision: str, ratio: float, drop: float | None = 0.0, refused: str | None = None) -> Candidate:
    return Candidate(precision, ratio * 0.01, ratio * 0.02, ratio, drop, 1_000_000, "executed as such", refused)


@pytest.fixture
def build(bundles, deployed_student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bundle]:
    """`build_auto_bundle` for ONNX with bundles that were made before, and latencies that the test chooses."""

    def made(target: object, student: object, out: Path, *, precision: str, **asked: object) -> Bundle:
        shutil.copytree(bundles("onnx", precision), out)
        return Bundle.open(out)

    monkeypatch.setattr(precision_auto, "build_bundle", made)

    def build(latencies_ms: Mapping[str, float], max_drop: float = 100.0) -> Bundle:
        def time(paths: Mapping[str, Path], reference: str, threads: int) -> dict[str, Timing]:
            base = latencies_ms[reference]
            return {
                name: Timing(latencies_ms[name] / 1e3, latencies_ms[name] / 500, latencies_ms[name] / base, 0.01, 120)
                for name in paths
            }

        return build_auto_bundle(
            replace(TARGET, precisions=PRECISIONS),
            find_student(deployed_student.run),
            tmp_path / "auto",
            max_drop_points=max_drop,
            time=time,
        )

    return build


def test_the_fastest_is_kept_whatever_its_precision(build, bundles) -> None:
    bundle = build({"fp32": 10.0, "fp16": 4.0, "int8": 6.0})
    assert bundle.manifest.precision == "fp16"
    made = Bundle.open(bundles("onnx", "fp16"))
    assert bundle.manifest.files == made.manifest.files
    assert replace(bundle.manifest, records={}) == replace(made.manifest, records={})


def test_the_manifest_keeps_the_figures_of_all_candidates(build) -> None:
    chosen = build({"fp32": 10.0, "fp16": 9.0, "int8": 6.0}).manifest.records["chosen"]
    assert (chosen["precision"], chosen["failed"]) == ("int8", {})
    figures = {one["precision"]: (one["p50_s"], one["ratio"]) for one in chosen["candidates"]}
    assert figures == {"fp32": (0.01, 1.0), "fp16": (0.009, 0.9), "int8": (0.006, 0.6)}
    assert chosen["candidates"][2]["executed"].startswith("executed as INT8: 63 of 63 convolutions")
    assert all(isinstance(one["drop_points"], float) for one in chosen["candidates"])
    assert chosen["measured_on"]["threads"] >= 1


def test_one_that_loses_too_much_is_not_chosen_and_the_table_says_so(build, bundles, capsys) -> None:
    drop = Bundle.open(bundles("onnx", "int8")).manifest.verified["drop_points"]
    assert drop > 0.5, "the tiny student's int8 bundle is expected to lose something"
    bundle = build({"fp32": 10.0, "fp16": 9.0, "int8": 1.0}, max_drop=drop - 0.4)
    assert bundle.manifest.precision == "fp16"
    table = capsys.readouterr().err.splitlines()
    assert table[-1] == "chosen: fp16, 9.0 ms"
    (line,) = [one for one in table if one.startswith("int8 ")]
    assert line.endswith(f"(refused: loses {drop:.2f} points, {drop - 0.4:g} are allowed)")
    assert line.split()[1:4] == ["1.0", "2.0", "10.00x"]


def test_an_int8_bundle_that_falls_back_is_not_chosen_however_fast(
    build, bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def float_in_disguise(target: object, student: object, out: Path, *, precision: str, **asked: object) -> Bundle:
        shutil.copytree(bundles("onnx", "fp32"), out)
        manifest = replace(Bundle.open(out).manifest, precision=precision)
        (out / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        return Bundle.open(out)

    monkeypatch.setattr(precision_auto, "build_bundle", float_in_disguise)
    bundle = build({"fp32": 10.0, "fp16": 11.0, "int8": 1.0})
    assert bundle.manifest.precision == "fp32"
    refused = [one["refused"] for one in bundle.manifest.records["chosen"]["candidates"]]
    assert refused == [None, None, "is not executed as such"]


def test_of_those_as_fast_the_one_that_loses_least_is_chosen() -> None:
    candidates = [_candidate("fp32", 1.0), _candidate("fp16", 0.509, 0.0), _candidate("int8", 0.5, 0.9)]
    assert choose(candidates).precision == "fp16"
    assert choose([*candidates[:1], _candidate("fp16", 0.511, 0.0), candidates[2]]).precision == "int8"


def test_without_a_usable_candidate_the_reasons_are_given_in_one_line() -> None:
    refused = [
        _candidate("fp32", 1.0, 3.0, "loses 3.00 points, 1 are allowed"),
        _candidate("int8", 0.5, 4.0, "too bad"),
    ]
    with pytest.raises(VerificationError) as caught:
        choose(refused)
    assert str(caught.value) == (
        "no precision can be chosen (fp32 loses 3.00 points, 1 are allowed; int8 too bad): give a larger --max-drop"
    )


def test_what_cannot_be_verified_at_all_is_left_out_and_named(
    build, bundles, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    made = precision_auto.build_bundle

    def fails(target: object, student: object, out: Path, *, precision: str, **asked: object) -> Bundle:
        if precision == "fp16":
            raise VerificationError("the bundle's box_p3 is not finite: try another precision")
        return made(target, student, out, precision=precision, **asked)

    monkeypatch.setattr(precision_auto, "build_bundle", fails)
    chosen = build({"fp32": 10.0, "int8": 12.0}).manifest.records["chosen"]
    assert chosen["failed"] == {"fp16": "the bundle's box_p3 is not finite: try another precision"}
    assert [one["precision"] for one in chosen["candidates"]] == ["fp32", "int8"]
    assert "fp16: the bundle's box_p3 is not finite: try another precision" in capsys.readouterr().err


def test_real_bundles_are_measured_in_processes_of_their_own(bundles) -> None:
    paths = {name: bundles("onnx", name) for name in ("fp32", "int8")}
    timings = functools.partial(time_bundles, rounds=3)(paths, "fp32", 1)
    assert timings["fp32"].ratio == 1.0
    assert {name: one.samples for name, one in timings.items()} == {"fp32": 18, "int8": 18}
    assert json.dumps({name: one.p50_s for name, one in timings.items()})
