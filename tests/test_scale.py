"""The graphs of benchmarks/scale.py: what is timed there is analysed as it should be."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from cutting import check_cut, open_groups
from scale import mixed, write_llama

import onnxprune
from onnxprune.analyze import analyze


def test_every_block_of_the_mixed_graph_can_be_cut() -> None:
    proto = mixed(80, width=8, heads=2)
    onnx.checker.check_model(proto, full_check=True)
    analysis = check_cut(ir.from_proto(proto))
    kinds = [group.kind for group in analysis.groups if group.frozen is None]
    assert kinds == ["channels"] * 3 + ["heads"] + ["channels"] * 3 + ["heads"]


@pytest.mark.parametrize("holes", [True, False])
def test_heads_and_hidden_units_of_the_llama_shaped_graph(holes: bool, tmp_path: Path) -> None:
    path = write_llama(
        tmp_path, holes=holes, layers=2, width=32, heads=4, shared=2, hidden=24, tokens=50
    )  # fmt: skip
    analysis = analyze(onnxprune.load(path))
    assert sorted(open_groups(analysis).values()) == [2, 2, 24, 24]
    data = path.with_name(path.name + ".data").read_bytes()
    assert any(data) is not holes
    sizes = [value.const_value.nbytes for value in onnxprune.load(path).graph.initializers.values()
             if isinstance(value.const_value, ir.ExternalTensor)]  # fmt: skip
    assert sum(sizes) == len(data)
