"""What quantizing a layer costs: a layer made bad on purpose is found, and what is float stays exactly float."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ultralytics", reason="deploying needs the [train] extra")

import torch

from deploy.agreement import AgreementMeter
from deploy.bundle import OutputSpec
from deploy.errors import DeployError
from deploy.graph import Graph, load_graph
from deploy.sensitivity import Cost, Probe, Sensitivity, layers_to_blame, measure
from deploy.sensitivity.__main__ import main
from deploy.sensitivity.partial import Choice

SIDE = 64
OUTLIER = 300.0


def spoil(network) -> None:
    """Give one channel inside the finest class branch an activation range that leaves its neighbours no steps."""
    branch = network.class_branches[0]
    branch[0].conv.weight[0] *= OUTLIER
    branch[1].conv.weight[:, 0] /= OUTLIER


@pytest.fixture(scope="module")
def images(deployed_student) -> list[Path]:
    return sorted((deployed_student.data_yaml.parent / "images/train").iterdir())[:3]


@pytest.fixture(scope="module")
def spoiled(deployed_student) -> Graph:
    graph = load_graph(deployed_student.checkpoint)
    spoil(graph.network)
    return graph


@pytest.fixture(scope="module")
def probe(spoiled, images) -> Probe:
    return Probe(spoiled, images, SIDE)


def test_a_block_with_an_outlier_is_the_first_to_blame(spoiled, images) -> None:
    blamed = layers_to_blame(spoiled, images, SIDE, n=2)
    assert blamed[0][0] == "model.22.cv3.0"
    assert len(blamed) == 2
    assert blamed[0][1] > 2 * blamed[1][1]


def test_the_layers_around_an_outlier_cost_most_and_by_their_activations(probe) -> None:
    _, costs = measure(probe, "layer")
    ranked = sorted(costs, key=lambda cost: -cost.damage_percent)
    assert {one.name for one in ranked[:2]} == {"model.22.cv3.0.0.conv", "model.22.cv3.0.1.conv"}
    assert ranked[0].activations_percent > ranked[0].weights_percent
    assert len(costs) == 63
    assert sum(one.macs_share for one in costs) == pytest.approx(1)


def test_keeping_the_bad_block_in_float_relieves_the_whole_network_most(probe) -> None:
    whole, costs = measure(probe, "block", reverse=True)
    best = max(costs, key=lambda cost: cost.relief_percent)
    assert best.name == "model.22.cv3.0"
    assert 0 < best.relief_percent <= whole


def test_nothing_quantized_gives_the_float_outputs_to_the_last_bit(probe) -> None:
    outputs = probe.quantizer.outputs(probe.images[0], [Choice(frozenset(), frozenset())])
    expected, met = next(outputs), next(outputs)
    assert all(torch.equal(one, other) for one, other in zip(expected, met, strict=True))


def test_what_a_choice_does_not_reach_is_left_out_without_changing_the_answer(probe) -> None:
    last = probe.quantizer.quantized(probe.numbers(["model.22.cv3.2"]))
    # The box branch of that level reads the same activation, which is rounded for both.
    assert probe.quantizer.reached(last) == probe.numbers(["model.22.cv2.2", "model.22.cv3.2"])
    everything = frozenset(range(probe.quantizer.layer_count))
    outputs = probe.quantizer.outputs(probe.images[0], [last])
    next(outputs)
    short = next(outputs)
    probe.quantizer._reached[last] = everything
    outputs = probe.quantizer.outputs(probe.images[0], [last])
    next(outputs)
    assert all(torch.equal(one, other) for one, other in zip(short, next(outputs), strict=True))
    del probe.quantizer._reached[last]


def test_an_activation_between_two_blocks_belongs_to_both(probe) -> None:
    first, second = probe.numbers(["model.0"]), probe.numbers(["model.1"])
    shared = probe.quantizer.quantized(first).sites & probe.quantizer.quantized(second).sites
    assert len(shared) == 1  # what model.0 makes and model.1 reads


def test_a_sensitivity_comes_back_from_its_file_as_it_was() -> None:
    cost = Cost("model.0", 1, 0.25, 0.5, 1.5, 2.5, 3.0, 40.0, math.inf, None)
    written = Sensitivity("tiny", "0" * 64, 96, "block", 3, 9.0, (cost,))
    assert Sensitivity.from_json(written.to_json(), Path("x")) == written


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"schema": 9}'])
def test_another_file_is_refused_in_one_line(text) -> None:
    with pytest.raises(DeployError, match=r"sensitivity\.json|schema"):
        Sensitivity.from_json(text, Path("x.json"))


def test_the_command_writes_a_table_a_file_and_a_picture(deployed_student, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    flags = ["--student", str(deployed_student.run), "--imgsz", str(SIDE), "--images", "1", "--out", str(out)]
    assert main([*flags, "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["block", "damage"]
    assert len(lines) == 5
    record = json.loads((out / "sensitivity.json").read_text())
    assert record["student"] == "tiny"
    assert len(record["costs"]) == 22
    assert (out / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert main(flags) == 1
    assert "already exists" in capsys.readouterr().err


def test_a_command_without_images_ends_in_one_line_and_leaves_nothing(deployed_student, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    flags = ["--student", str(deployed_student.run), "--out", str(tmp_path / "out")]
    assert main([*flags, "--calibration", str(tmp_path / "empty")]) == 1
    assert "no images" in capsys.readouterr().err
    assert main([*flags, "--calibration", str(tmp_path / "absent")]) == 1
    assert "check the path" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Agreement ------------------------------------------------------------------------------------------------------------

OUTPUTS = (OutputSpec("box_p3", "box", 8, 8, "NCHW"), OutputSpec("class_p3", "class", 8, 2, "NCHW"))


def _cells(box_bin: float, logit: float) -> tuple[np.ndarray, np.ndarray]:
    """Two cells; the first has all four sides at `box_bin` of 2 bins (0 or 1) and one class at `logit`."""
    box = np.full((2, 8), -20.0, np.float32)
    box[0, [0, 2, 4, 6]], box[0, [1, 3, 5, 7]] = math.log(1 - box_bin + 1e-9), math.log(box_bin + 1e-9)
    classes = np.full((2, 2), -12.0, np.float32)
    classes[0, 0] = logit
    return box, classes


def _damage(expected, met) -> float:
    meter = AgreementMeter(OUTPUTS, reg_max=2)
    meter.add(expected, met)
    return meter.result().damage_percent


def test_equal_outputs_have_no_damage_and_no_noise() -> None:
    meter = AgreementMeter(OUTPUTS, reg_max=2)
    meter.add(_cells(0.5, 2.0), _cells(0.5, 2.0))
    assert meter.result().damage_percent == 0
    assert meter.result().class_sqnr_db == math.inf


def test_a_lost_score_is_damage_in_percent_of_the_confidence() -> None:
    # Scores 0.8 and 0.6: a quarter of the confidence is lost.
    assert _damage(_cells(0.5, math.log(4)), _cells(0.5, math.log(1.5))) == pytest.approx(25, abs=0.01)


def test_a_box_of_a_quarter_of_the_area_loses_three_quarters() -> None:
    # Sides at 1.0 and at 0.5 cells from the centre: IoU 0.25.
    assert _damage(_cells(1.0, math.log(4)), _cells(0.5, math.log(4))) == pytest.approx(75, abs=0.01)


def test_an_invented_object_is_damage_too_and_a_low_score_is_not() -> None:
    expected = _cells(0.5, math.log(4))
    invented = _cells(0.5, math.log(4))
    invented[1][1, 1] = 0.0  # 0.5 out of nothing, beside 0.8
    assert _damage(expected, invented) == pytest.approx(62.5, abs=0.1)
    low = _cells(0.5, math.log(4))
    low[1][1, 1] = -4.0  # 0.018
    assert _damage(expected, low) == 0


def test_a_classifiers_damage_is_half_the_sum_of_what_its_softmax_moves() -> None:
    meter = AgreementMeter((OutputSpec("logits", "logits", 0, 2, "NC"),), 0)
    one, other = np.log([[0.9, 0.1]]).astype(np.float32), np.log([[0.7, 0.3]]).astype(np.float32)
    meter.add([one], [other])
    assert meter.result().damage_percent == pytest.approx(20, abs=1e-3)
    assert math.isnan(meter.result().box_sqnr_db)
