"""The student's layers by name, and the operations of each target's graph that they became."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ultralytics", reason="deploying needs the [train] extra")

from deploy.errors import ExportError
from deploy.graph import Graph, export_onnx, load_graph
from deploy.layers import (
    Layer,
    Operation,
    block_names,
    float_layer_names,
    float_operations,
    last_layer_names,
    layer_of,
    layers_below,
    row_signature,
    student_layers,
)


@pytest.fixture(scope="module")
def graph(deployed_student) -> Graph:
    return load_graph(deployed_student.checkpoint)


def test_layers_are_named_as_the_checkpoint_names_them_in_forward_order(graph: Graph) -> None:
    names = float_layer_names(graph)
    assert len(names) == 63
    assert names[:5] == (
        "model.0.conv",
        "model.1.conv",
        "model.2.cv1.conv",
        "model.2.m.0.cv1.conv",
        "model.2.m.0.cv2.conv",
    )
    assert names[-1] == "model.22.cv3.2.2"
    modules = dict(graph.network.named_modules())
    for layer in student_layers(graph):
        assert np.array_equal(layer.weight, row_signature(modules[layer.module].weight.numpy()))


def test_blocks_are_the_bodys_layers_and_the_heads_branches(graph: Graph) -> None:
    blocks = block_names(graph)
    assert blocks[:3] == ("model.0", "model.1", "model.2")
    assert set(blocks[-6:]) == {f"model.22.{branch}.{level}" for branch in ("cv2", "cv3") for level in range(3)}
    assert sorted(sum((layers_below([block], graph) for block in blocks), ())) == sorted(float_layer_names(graph))


def test_a_name_covers_what_lies_below_it_and_not_what_merely_begins_like_it(graph: Graph) -> None:
    assert layers_below(["model.1"], graph) == ("model.1.conv",)  # not model.12
    assert layers_below(["model.22.cv2.0", "model.0"], graph) == (
        "model.0.conv",
        "model.22.cv2.0.0.conv",
        "model.22.cv2.0.1.conv",
        "model.22.cv2.0.2",
    )
    assert len(layers_below(["model.22"], graph)) == 18
    assert layers_below([], graph) == ()


def test_an_unknown_layer_is_refused_with_the_known_blocks(graph: Graph) -> None:
    with pytest.raises(
        ExportError, match=r"no layer 'model\.99': give some of model\.0, model\.1, .*model\.22\.cv3\.2$"
    ):
        layers_below(["model.0", "model.99"], graph)


def test_the_last_layers_are_those_that_make_the_raw_tensors(graph: Graph) -> None:
    assert sorted(last_layer_names(graph)) == [f"model.22.{b}.{level}.2" for b in ("cv2", "cv3") for level in range(3)]


def test_a_layer_is_known_by_its_weights_however_they_are_transposed_and_scaled() -> None:
    random = np.random.default_rng(3)
    weights = [random.normal(size=shape).astype(np.float32) for shape in ((8, 4, 3, 3), (8, 4, 3, 3), (8, 1, 3, 3))]
    layers = [Layer(f"layer{index}", "", row_signature(weight)) for index, weight in enumerate(weights)]
    scale = random.normal(size=8).astype(np.float32)
    assert layer_of(weights[1].transpose(0, 2, 3, 1), layers) == "layer1"
    assert layer_of(weights[2].transpose(1, 2, 3, 0) * scale, layers, axis=3) == "layer2"
    assert layer_of(weights[0] * scale[:, None, None, None], layers) == "layer0"
    assert layer_of(random.normal(size=(8, 4, 3, 3)).astype(np.float32), layers) is None


def test_what_reads_float_tensors_alone_stays_in_float_and_what_joins_a_quantized_one_does_not() -> None:
    operations = [
        Operation("conv0", ("pixels",), ("a",), "first"),
        Operation("gate0", ("a",), ("b",)),
        Operation("mul0", ("a", "b"), ("c",)),
        Operation("conv1", ("c",), ("d",), "second"),
        Operation("join", ("c", "d"), ("e",)),
    ]
    assert float_operations(operations, ["first"]) == ["conv0", "gate0", "mul0"]
    assert float_operations(operations, ["second"]) == ["conv1"]
    assert float_operations(operations, ["first", "second"]) == ["conv0", "gate0", "mul0", "conv1", "join"]
    assert float_operations(operations, []) == []


def test_every_layer_is_found_once_in_the_exported_graph(graph: Graph) -> None:
    from deploy.onnx_graph import onnx_operations

    found = [one.layer for one in onnx_operations(export_onnx(graph, 64), graph) if one.layer]
    assert sorted(found) == sorted(float_layer_names(graph))
