"""Groups of the same structure compete, groups of other structures do not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import small_models
from cutting import graph

from onnxprune import plan
from onnxprune.allocate.channels import choose_channels
from onnxprune.allocate.isomorphic import structures_of
from onnxprune.allocate.options import Options
from onnxprune.analyze import analyze
from onnxprune.types import ChannelGroup, Member, Scores


def classes(model: ir.Model) -> set[frozenset[str]]:
    analysis = analyze(model)
    found = structures_of(analysis.model, analysis.groups)
    return {
        frozenset(name for name, other in found.items() if other == structure) for structure in found.values()
    }


def test_inside_of_blocks_and_widths_are_two_classes() -> None:
    found = classes(ir.from_proto(small_models.residual_net()))
    assert frozenset({"block1.conv1", "block2.conv1"}) in found
    assert frozenset({"stem"}) in found


def test_heads_and_hidden_units_of_all_blocks() -> None:
    """Two blocks after each other; a residual width that differs in the number of its members."""
    block = """
        q{i} = MatMul({x}, wq{i}) qs{i} = Reshape(q{i}, split) qt{i} = Transpose<perm=[0,2,1,3]>(qs{i})
        k{i} = MatMul({x}, wk{i}) ks{i} = Reshape(k{i}, split) kt{i} = Transpose<perm=[0,2,3,1]>(ks{i})
        v{i} = MatMul({x}, wv{i}) vs{i} = Reshape(v{i}, split) vt{i} = Transpose<perm=[0,2,1,3]>(vs{i})
        l{i} = MatMul(qt{i}, kt{i}) p{i} = Softmax<axis=-1>(l{i}) m{i} = MatMul(p{i}, vt{i})
        mt{i} = Transpose<perm=[0,2,1,3]>(m{i}) j{i} = Reshape(mt{i}, join) o{i} = MatMul(j{i}, wo{i})
        a{i} = Add({x}, o{i}) u{i} = MatMul(a{i}, wu{i}) r{i} = Relu(u{i}) d{i} = MatMul(r{i}, wd{i})
        x{i} = Add(a{i}, d{i})
    """
    body = "".join(block.replace("{i}", str(i)).replace("{x}", x) for i, x in enumerate(("e", "x0")))
    constants = {f"w{part}{i}": (8, 8) for part in "qkvo" for i in (0, 1)}
    constants |= {f"wu{i}": (8, 16) for i in (0, 1)} | {f"wd{i}": (16, 8) for i in (0, 1)}
    model = graph(
        f"e = MatMul(x, we) {body} y = MatMul(x1, wy)",
        inputs="float[N,5,3] x",
        constants={**constants, "we": (3, 8), "wy": (8, 2), "split": [0, 5, 4, 2], "join": [0, 5, 8]},
    )
    analysis = analyze(model)
    open_groups = {group.name: group.kind for group in analysis.groups if group.frozen is None}
    found = {frozenset(each & open_groups.keys()) for each in classes(model)} - {frozenset()}
    assert sorted(sorted(open_groups[name] for name in each) for each in found) == [
        ["heads", "heads"],
        ["hidden"],
        ["hidden", "hidden"],
    ]


def test_the_number_of_blocks_does_not_matter_but_one_is_not_several() -> None:
    at = np.arange(4, dtype=np.int32)
    model = graph(
        "a = MatMul(x, w1)\n b = MatMul(a, w2)\n y = MatMul(b, w3)",
        inputs="float[N,4] x",
        constants={"w1": (4, 4), "w2": (4, 4), "w3": (4, 4)},
    )
    nodes = [str(node.name) for node in analyze(model).model.graph]

    def group(name: str, *contracted: bool) -> ChannelGroup:
        members = tuple(Member("w1", 0, at, each, nodes[0]) for each in contracted)
        return ChannelGroup(name, "hidden", 4, members)

    groups = [
        group("one", False, True),
        group("two", False, False, True),
        group("three", False, True, False, False),
        group("same", True, False),
    ]
    found = structures_of(analyze(model).model, groups)
    assert found["two"] == found["three"] != found["one"] == found["same"]


def test_each_class_gives_the_same_share_by_one_threshold() -> None:
    sizes = {"a": 8, "b": 8, "c": 12}
    groups = [ChannelGroup(name, "hidden", size, ()) for name, size in sizes.items()]
    scores = Scores(
        "test",
        {
            "a": np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 1, 1]),
            "b": np.array([0.9, 0.2, 0.9, 0.2, 0.9, 0.9, 0.9, 1]) * 50,
            "c": np.linspace(0.8, 1, 12),
        },
    )
    structures = {"a": ("hidden", 1), "b": ("hidden", 1), "c": ("hidden", 2)}
    options = Options("isomorphic", align=1, floor=0)
    choices = choose_channels(groups, scores, options, amount=0.5, structures=structures)
    assert [choice.removed.tolist() for choice in choices] == [[0, 1, 2, 3, 4, 5], [1, 3], [0, 1, 2, 3, 4, 5]]


def test_from_a_model_to_a_plan() -> None:
    """Weak channels inside one block: it gives most of what its class gives, the width its own share."""
    model = ir.from_proto(small_models.residual_net())
    for name, axis in (
        ("block1.conv1.weight", 0),
        ("block1.conv1.bias", 0),
        *((f"block1.bn1.{part}", 0) for part in ("weight", "bias", "running_mean", "running_var")),
        ("block1.conv2.weight", 1),
    ):
        weights = model.graph.initializers[name].const_value.numpy().copy()  # type: ignore[union-attr]
        np.moveaxis(weights, axis, 0)[2:14] *= 1e-3
        model.graph.initializers[name].const_value = ir.tensor(weights, name=name)
    decided = plan(model, amount=0.375, scope="isomorphic", align=1, floor=0.0, score="l1")
    gone = {group.name: group.removed.tolist() for group in decided.groups}
    assert gone["block1.conv1"] == list(range(2, 14))
    assert gone["block2.conv1"] == []
    assert len(gone["stem"]) == 6
