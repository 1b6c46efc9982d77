"""Einsum: letters kept, summed, repeated, hidden under dots; attention and experts written with it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import check_cut, frozen_groups, graph, group_of, open_groups, positions

from onnxprune.analyze import analyze
from onnxprune.cost import cost_of
from onnxprune.ops.base import WeightInput
from onnxprune.ops.einsum import Einsum, equation_of
from onnxprune.ops.kept import Kept

SEQUENCE = "float[N,5,6] x"


def equation(text: str, *ranks: int) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    values = [ir.Value(name=f"x{number}", shape=ir.Shape([2] * rank)) for number, rank in enumerate(ranks)]
    node = ir.node("Einsum", values, {"equation": text})
    read = equation_of(node, lambda value: len(value.shape or ()))
    return read.operands, read.output


@pytest.mark.parametrize(
    ("text", "ranks", "operands", "output"),
    [
        ("ij,jk->ik", (2, 2), [("i", "j"), ("j", "k")], ("i", "k")),
        (" b i , i o ", (2, 2), [("b", "i"), ("i", "o")], ("b", "o")),
        ("ba", (2,), [("b", "a")], ("a", "b")),
        ("Zi,ia", (2, 2), [("Z", "i"), ("i", "a")], ("Z", "a")),
        ("ii", (2,), [("i", "i")], ()),
        ("...i,io->...o", (4, 2), [("...2", "...1", "...0", "i"), ("i", "o")], ("...2", "...1", "...0", "o")),
        ("...i,...i", (3, 2), [("...1", "...0", "i"), ("...0", "i")], ("...1", "...0")),
        ("b...i,io->bo...", (3, 2), [("b", "...0", "i"), ("i", "o")], ("b", "o", "...0")),
        ("i...,i->...", (1, 1), [("i",), ("i",)], ()),
    ],
)
def test_equations(text, ranks, operands, output) -> None:
    assert equation(text, *ranks) == (tuple(operands), output)


@pytest.mark.parametrize(("text", "ranks"), [("ij,jk->ik", (3, 2)), ("ijk->k", (2,)), ("i,j->ij", (1,))])
def test_equations_that_do_not_fit(text: str, ranks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"fit|zip"):
        equation(text, *ranks)


@pytest.mark.parametrize(
    "first", ["nti,io->nto", "...i,io", "nti , io -> nto", "tni,io->tno", "...i,io->...o"]
)
def test_linear_layers(first: str) -> None:
    constants = {"a_w": (6, 8), "a_b": (8,), "c_w": (3, 8)}
    body = f"""
        h = Einsum<equation = "{first}">(x, a_w) s = Add(h, a_b) r = Relu(s)
        y = Einsum<equation = "nti,oi->nto">(r, c_w)
    """
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    group = group_of(analysis, "a_w", 1)
    assert group.kind == "hidden"
    assert positions(group) == {("a_w", 1, False), ("a_b", 0, False), ("c_w", 1, True)}


def test_the_weight_on_the_left() -> None:
    body = """
        h = Einsum<equation = "oi,nti->nto">(a_w, x) r = Tanh(h)
        y = Einsum<equation = "oi,nti->nto">(c_w, r)
    """
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants={"a_w": (8, 6), "c_w": (3, 8)}))
    assert positions(group_of(analysis, "a_w", 0)) == {("a_w", 0, False), ("c_w", 1, True)}


def test_three_operands_and_a_sum_between_weights() -> None:
    """A low-rank pair of weights: the rank is summed over inside the product, and can be cut too."""
    body = """
        h = Einsum<equation = "nti,ir,ro->nto">(x, a_w, b_w) r = Relu(h)
        y = Einsum<equation = "ntr,rc->ntc">(r, c_w)
    """
    constants = {"a_w": (6, 7), "b_w": (7, 8), "c_w": (8, 3)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert open_groups(analysis) == {"a_w": 7, "b_w": 8}
    assert positions(group_of(analysis, "a_w", 1)) == {("a_w", 1, False), ("b_w", 0, True)}


def test_a_bilinear_product_of_two_branches() -> None:
    body = """
        a = MatMul(x, a_w) b = MatMul(x, b_w)
        h = Einsum<equation = "ntc,nuc->ntu">(a, b) y = Softmax(h)
    """
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants={"a_w": (6, 8), "b_w": (6, 8)}))
    assert positions(group_of(analysis, "a_w", 1)) == {("a_w", 1, False), ("b_w", 1, False)}


def test_a_letter_summed_in_one_operand_alone() -> None:
    body = 'a = MatMul(x, a_w) h = Einsum<equation = "ntc->nt">(a) y = Relu(h)'
    assert open_groups(check_cut(graph(body, inputs=SEQUENCE, constants={"a_w": (6, 8)}))) == {"a_w": 8}


def test_an_outer_product_keeps_both_axes() -> None:
    body = """
        a = MatMul(x, a_w) b = MatMul(x, b_w) h = Einsum<equation = "ntc,ntd->ntcd">(a, b) r = Relu(h)
        y = Einsum<equation = "ntcd,cde->nte">(r, c_w)
    """
    constants = {"a_w": (6, 4), "b_w": (6, 5), "c_w": (4, 5, 3)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert open_groups(analysis) == {"a_w": 4, "b_w": 5}
    assert positions(group_of(analysis, "b_w", 1)) == {("b_w", 1, False), ("c_w", 1, True)}


def test_size_one_is_repeated_and_has_no_channels() -> None:
    body = """
        a = MatMul(x, a_w) b = MatMul(x, b_w) h = Einsum<equation = "ntc,ntc->ntc">(a, b)
        y = MatMul(h, c_w)
    """
    constants = {"a_w": (6, 8), "b_w": (6, 1), "c_w": (8, 3)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    assert ("b_w", 1, False) not in positions(group_of(analysis, "a_w", 1))


def test_a_sum_over_a_repeated_axis() -> None:
    """The operand of size 1 can't be zeroed position by position: the other one is."""
    body = """
        a = MatMul(x, a_w) h = Einsum<equation = "ntc,co->nto">(a, ones) y = Relu(h)
    """
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants={"a_w": (6, 8), "ones": (1, 3)}))
    assert open_groups(analysis) == {"a_w": 8}


def test_channels_that_meet_the_input_stay() -> None:
    body = """
        a = MatMul(x, a_w) h = Einsum<equation = "ntc,ntc->ntc">(a, x) y = MatMul(h, c_w)
    """
    analysis = analyze(graph(body, inputs=SEQUENCE, constants={"a_w": (6, 6), "c_w": (6, 3)}))
    assert "no channels along the axis 'c'" in frozen_groups(analysis)["a_w"]


def test_a_diagonal_loses_the_same_position_twice() -> None:
    body = """
        a = MatMul(x, a_w) b = MatMul(x, b_w) h = Einsum<equation = "ntc,ntd->ntcd">(a, b)
        d = Einsum<equation = "ntcc->ntc">(h) y = MatMul(d, c_w)
    """
    constants = {"a_w": (6, 8), "b_w": (6, 8), "c_w": (8, 3)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert positions(group_of(analysis, "a_w", 1)) == {
        ("a_w", 1, False),
        ("b_w", 1, False),
        ("c_w", 0, True),
    }


@pytest.mark.parametrize("layout", ["bhqd", "bqhd"])
def test_attention(layout: str) -> None:
    h, d, t = 4, 3, 5
    q, k = (layout, "bhkd") if layout == "bhqd" else ("bqhd", "bkhd")
    moved = "Transpose<perm = [0, 2, 1, 3]>" if layout == "bhqd" else "Identity"
    lines = []
    for name in "qkv":
        lines.append(f"{name}m = MatMul(x, {name}_w) {name}r = Reshape({name}m, split)")
        lines.append(f"{name} = {moved}({name}r)")
    body = (
        " ".join(lines)
        + f"""
        s = Einsum<equation = "{q},{k}->bhqk">(q, k) p = Softmax<axis = -1>(s)
        o = Einsum<equation = "bhqk,{k}->bqhd">(p, v) j = Reshape(o, join) y = MatMul(j, o_w)
    """
    )
    constants = {f"{name}_w": (6, h * d) for name in "qkv"} | {"o_w": (h * d, 6)}
    constants |= {"split": [0, t, h, d], "join": [0, t, h * d]}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    kinds = {(group.kind, group.size) for group in analysis.groups if "output" not in str(group.frozen)}
    assert kinds == {("heads", h), ("head_dim", d)}
    (heads,) = (group for group in analysis.groups if group.kind == "heads")
    assert heads.frozen is None
    tensors = {(member.tensor, member.axis) for member in heads.members}
    assert tensors == {("q_w", 1), ("k_w", 1), ("v_w", 1), ("o_w", 0)}


def test_weights_of_attention_with_heads_of_their_own() -> None:
    """Projections as einsum kernels [inputs, heads, places], as in JAX models."""
    body = """
        q = Einsum<equation = "btm,mhd->bthd">(x, q_w) k = Einsum<equation = "btm,mhd->bthd">(x, k_w)
        v = Einsum<equation = "btm,mhd->bthd">(x, v_w)
        s = Einsum<equation = "bqhd,bkhd->bhqk">(q, k) p = Softmax<axis = -1>(s)
        o = Einsum<equation = "bhqk,bkhd->bqhd">(p, v) y = Einsum<equation = "bqhd,hdm->bqm">(o, o_w)
    """
    constants = {f"{name}_w": (6, 4, 3) for name in "qkv"} | {"o_w": (4, 3, 6)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    group = group_of(analysis, "q_w", 1)
    assert (group.kind, group.size, group.frozen) == ("heads", 4, None)
    assert ("o_w", 0, True) in positions(group)
    assert {group_of(analysis, f"{name}_w", 2).kind for name in "qkv"} == {"head_dim"}


def test_experts() -> None:
    """Every token through every expert, weighted by the router: hidden units inside experts, and experts."""
    body = """
        g = MatMul(x, r_w) p = Sigmoid(g) h = Einsum<equation = "btm,emf->btef">(x, a_w) r = Relu(h)
        o = Einsum<equation = "btef,efm->btem">(r, c_w) y = Einsum<equation = "btem,bte->btm">(o, p)
    """
    constants = {"r_w": (6, 4), "a_w": (4, 6, 8), "c_w": (4, 8, 6)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    # The e of the second product goes on; the result of the third no longer has it.
    assert positions(group_of(analysis, "a_w", 2)) == {("a_w", 2, False), ("c_w", 1, True)}
    experts = group_of(analysis, "r_w", 1)
    assert (experts.kind, experts.size) == ("experts", 4)
    assert positions(experts) == {
        ("r_w", 1, False),
        ("a_w", 0, False),
        ("c_w", 0, False),
    }


def test_experts_summed_by_their_router() -> None:
    body = """
        g = MatMul(x, r_w) p = Sigmoid(g) h = Einsum<equation = "btm,emf->btef">(x, a_w) r = Relu(h)
        y = Einsum<equation = "btef,efm,bte->btm">(r, c_w, p)
    """
    constants = {"r_w": (6, 4), "a_w": (4, 6, 8), "c_w": (4, 8, 6)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert (group_of(analysis, "r_w", 1).kind, group_of(analysis, "r_w", 1).size) == ("experts", 4)
    assert (group_of(analysis, "a_w", 2).kind, group_of(analysis, "a_w", 2).size) == ("hidden", 8)


def test_macs() -> None:
    body = 'y = Einsum<equation = "nti,ir,ro->nto">(x, a_w, b_w)'
    model = graph(body, inputs="float[2,5,6] x", constants={"a_w": (6, 7), "b_w": (7, 8)})
    analysis = analyze(model)
    cost = cost_of(
        analysis.model.graph,
        analysis.channels,
        Kept(analysis.channels, np.zeros(analysis.channels.labels.count, bool)),
    )
    samples = analysis.shapes.samples
    assert cost.macs * samples == 2 * 5 * 6 * 7 + 2 * 5 * 7 * 8


def test_macs_of_a_sum_alone() -> None:
    value = ir.Value(name="x")
    node = ir.node("Einsum", [value], {"equation": "ij->i"})
    assert Einsum().macs(node, lambda _: (3, 4)) == 0


@pytest.mark.parametrize(
    ("text", "ranks", "expected"),
    [
        ("nti,io->nto", (3, 2), [WeightInput(1, 0, 1), WeightInput(0, 2, 1)]),
        ("bhd,hde->bhe", (3, 3), [WeightInput(1, 1, 2), WeightInput(0, 2, 0)]),
        ("bqhd,hdm->bqm", (4, 3), [WeightInput(1, 1, 2), WeightInput(0, 3, 1)]),
        ("bc,bc->bc", (2, 2), []),
        ("b,c->bc", (1, 1), []),
    ],
)
def test_weight_inputs(text: str, ranks: tuple[int, ...], expected: list[WeightInput]) -> None:
    values = [ir.Value(name=f"x{number}", shape=ir.Shape([2] * rank)) for number, rank in enumerate(ranks)]
    node = ir.node("Einsum", values, {"equation": text})
    assert list(Einsum().weight_inputs(node, lambda value: len(value.shape or ()))) == expected
    assert Einsum().weight_inputs(node, lambda _: 0) == ()
