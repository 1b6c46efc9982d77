"""Recurrent layers: units of all gates, both directions, states and peepholes; what freezes them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import (
    Constant,
    check_cut,
    frozen_groups,
    graph,
    group_of,
    open_groups,
    positions,
    some_channels,
)
from onnx.reference import ReferenceEvaluator

from onnxprune.analyze import Analysis, analyze
from onnxprune.cost import cost_of
from onnxprune.ops.weights import find_weights
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.twin import make_twin

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
INPUT, HIDDEN = 5, 6
SEQUENCE = f"float[T,B,{INPUT}] x"


def weights(op: str, directions: int = 1, name: str = "", inputs: int = INPUT) -> dict[str, Constant]:
    """Return W, R and B of a layer, all random."""
    rows = GATES[op] * HIDDEN
    return {
        f"{name}w": (directions, rows, inputs),
        f"{name}r": (directions, rows, HIDDEN),
        f"{name}b": (directions, 2 * rows),
    }


def recurrent_node(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type in GATES)


def cut_some(analysis: Analysis) -> ir.Model:
    gone = analysis.removed_labels(some_channels(analysis, 0, 0.4))
    return cut(analysis.model, analysis.channels, gone)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("opset", [7, 14, 22])
def test_units_go_from_every_operand(op: str, direction: str, opset: int) -> None:
    """Weights, biases, states, peepholes; sequences of different lengths; and every output is read."""
    count = DIRECTIONS[direction]
    states = "h0, c0, p" if op == "LSTM" else "h0"
    outputs = "s, sh, sc" if op == "LSTM" else "s, sh"
    more = "hc = Concat<axis = 0>(sh, sc)" if op == "LSTM" else "hc = Identity(sh)"
    body = f"""
        {outputs} = {op}<hidden_size = {HIDDEN}, direction = "{direction}">(x, w, r, b, lengths, {states})
        {more} ys = MatMul(s, o_w) yh = MatMul(hc, q_w)
    """
    constants: dict[str, Constant] = weights(op, count) | {
        "h0": (count, 2, HIDDEN), "c0": (count, 2, HIDDEN), "p": (count, 3 * HIDDEN),
        "lengths": np.array([4, 2], np.int32), "o_w": (HIDDEN, 3), "q_w": (HIDDEN, 3),
    }  # fmt: skip
    if op != "LSTM":
        del constants["c0"], constants["p"]
    model = graph(body, inputs=f"float[4,2,{INPUT}] x", outputs="ys; yh", constants=constants, opset=opset)
    analysis = check_cut(model)
    assert open_groups(analysis) == {"w": HIDDEN}
    group = group_of(analysis, "r", 2)
    assert group.kind == "hidden"
    assert positions(group) == {
        ("w", 1, False), ("r", 1, False), ("r", 2, True), ("b", 1, False), ("h0", 2, False),
        ("o_w", 0, True), ("q_w", 0, True),
    } | ({("c0", 2, False), ("p", 1, False)} if op == "LSTM" else set())  # fmt: skip


@pytest.mark.parametrize(
    ("op", "options"),
    [("LSTM", 'activations = ["Sigmoid", "Tanh", "Relu"], clip = 0.4'),
     ("LSTM", "input_forget = 1"),
     ("GRU", "linear_before_reset = 1"),
     ("GRU", 'activations = ["HardSigmoid", "Softsign"], activation_alpha = [0.3], activation_beta = [0.4]'),
     ("RNN", 'activations = ["Relu"], clip = 0.5')],
)  # fmt: skip
def test_options_stay(op: str, options: str) -> None:
    body = f"s = {op}<hidden_size = {HIDDEN}, {options}>(x, w, r, b) y = MatMul(s, o_w)"
    model = graph(body, inputs=SEQUENCE, constants=weights(op) | {"o_w": (HIDDEN, 3)})
    analysis = check_cut(model)
    assert open_groups(analysis) == {"w": HIDDEN}
    before, after = recurrent_node(analysis.model), recurrent_node(cut_some(analysis))
    left = after.attributes.pop("hidden_size").as_int()
    assert 0 < left < HIDDEN
    assert {name: attribute.value for name, attribute in after.attributes.items()} == {
        name: attribute.value for name, attribute in before.attributes.items() if name != "hidden_size"
    }


@pytest.mark.parametrize("op", GATES)
def test_one_unit_less_in_every_gate(op: str) -> None:
    """The rows of gate g at unit h, in the order that ONNX says, and no others."""
    body = f"s = {op}<hidden_size = {HIDDEN}>(x, w, r, b) y = MatMul(s, o_w)"
    model = graph(body, inputs=SEQUENCE, constants=weights(op) | {"o_w": (HIDDEN, 3)})
    analysis = analyze(model)
    gone = analysis.removed_labels({"w": np.array([2], np.int32)})
    initializers = cut(analysis.model, analysis.channels, gone).graph.initializers
    w, r, b = (model.graph.initializers[name].const_value.numpy() for name in "wrb")  # type: ignore[union-attr]
    kept = [g * HIDDEN + h for g in range(GATES[op]) for h in range(HIDDEN) if h != 2]
    both = [*kept, *(GATES[op] * HIDDEN + row for row in kept)]
    units = [0, 1, 3, 4, 5]
    for name, expected in (("w", w[:, kept]), ("r", r[:, kept][:, :, units]), ("b", b[:, both])):
        np.testing.assert_array_equal(initializers[name].const_value.numpy(), expected)  # type: ignore[union-attr]


@pytest.mark.parametrize("op", GATES)
def test_stacked_bidirectional_layers(op: str) -> None:
    """[T, 2, B, H] -> [T, B, 2 * H]: both directions lose the same unit; the layers are independent."""
    body = f"""
        s = {op}<hidden_size = {HIDDEN}, direction = "bidirectional">(x, a_w, a_r, a_b)
        t = Transpose<perm = [0, 2, 1, 3]>(s) f = Reshape(t, merged)
        u = {op}<hidden_size = {HIDDEN}, direction = "bidirectional">(f, c_w, c_r, c_b)
        v = Transpose<perm = [0, 2, 1, 3]>(u) g = Reshape(v, merged) y = MatMul(g, o_w)
    """
    constants = weights(op, 2, "a_") | weights(op, 2, "c_", 2 * HIDDEN)
    constants |= {"merged": [0, 0, -1], "o_w": (2 * HIDDEN, 3)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert open_groups(analysis) == {"a_w": HIDDEN, "c_w": HIDDEN}
    group = group_of(analysis, "a_w", 1)
    assert ("c_w", 2, True) in positions(group)
    (columns,) = (member for member in group.members if (member.tensor, member.axis) == ("c_w", 2))
    assert (columns.channel_at >= 0).all()


def test_an_input_of_channels_is_summed_over() -> None:
    body = f"i = MatMul(x, e_w) s = GRU<hidden_size = {HIDDEN}>(i, w, r, b) y = MatMul(s, o_w)"
    constants = weights("GRU") | {"e_w": (7, INPUT), "o_w": (HIDDEN, 3)}
    analysis = check_cut(graph(body, inputs="float[T,B,7] x", constants=constants))
    assert open_groups(analysis) == {"e_w": INPUT, "w": HIDDEN}
    assert positions(group_of(analysis, "w", 2)) == {("e_w", 1, False), ("w", 2, True)}


@pytest.mark.parametrize(
    ("op", "wanted"), [("LSTM", ', s, ""'), ("LSTM", ", , s"), ("GRU", ", s"), ("RNN", ", s")]
)
def test_only_the_last_state_is_read(op: str, wanted: str) -> None:
    """Y itself has no name then."""
    outputs = {', s, ""': '"", s', ", , s": '"", "", s', ", s": '"", s'}[wanted]
    body = f"""
        {outputs} = {op}<hidden_size = {HIDDEN}, direction = "reverse">(x, w, r, b)
        last = Squeeze<axes = [0]>(s) y = Gemm(last, o_w)
    """
    constants = weights(op) | {"o_w": (HIDDEN, 3)}
    assert open_groups(check_cut(graph(body, inputs=SEQUENCE, constants=constants, opset=12))) == {
        "w": HIDDEN
    }


def test_two_layers_whose_last_states_are_unnamed_first_outputs() -> None:
    body = f"""
        "", s = GRU<hidden_size = {HIDDEN}>(x, a_w, a_r, a_b)
        "", t = GRU<hidden_size = {HIDDEN}>(x, c_w, c_r, c_b)
        p = MatMul(s, o_w) q = MatMul(t, q_w) y = Add(p, q)
    """
    constants = weights("GRU", 1, "a_") | weights("GRU", 1, "c_") | {"o_w": (HIDDEN, 3), "q_w": (HIDDEN, 3)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert open_groups(analysis) == {"a_w": HIDDEN, "c_w": HIDDEN}


def test_a_decoder_begins_with_states_from_an_encoder() -> None:
    """The units of the decoder are those of the layers that make its states."""
    body = f"""
        "", e = GRU<hidden_size = {HIDDEN}>(x, e_w, e_r, e_b) f = Squeeze(e, zero)
        hp = Gemm(f, h_w, h_b) h = Tanh(hp) cs = Gemm(f, c_w, c_b)
        h0 = Unsqueeze(h, zero) c0 = Unsqueeze(cs, zero)
        s = LSTM<hidden_size = {HIDDEN}>(x, w, r, b, "", h0, c0) y = MatMul(s, o_w)
    """
    constants = weights("GRU", 1, "e_") | weights("LSTM") | {
        "h_w": (HIDDEN, HIDDEN), "h_b": (HIDDEN,), "c_w": (HIDDEN, HIDDEN), "c_b": (HIDDEN,),
        "zero": [0], "o_w": (HIDDEN, 3),
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert sorted(open_groups(analysis).values()) == [HIDDEN, HIDDEN]
    decoder = positions(group_of(analysis, "r", 2))
    assert {("h_w", 1, False), ("h_b", 0, False), ("c_w", 1, False), ("c_b", 0, False)} < decoder
    assert {("h_w", 0, True), ("c_w", 0, True)} < positions(group_of(analysis, "e_r", 2))


# --- what keeps units ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1])
def test_a_state_from_outside_keeps_all_units(index: int) -> None:
    states = ["", ""]
    states[index] = "state"
    given = ", ".join(name or '""' for name in states)
    body = f's = LSTM<hidden_size = {HIDDEN}>(x, w, r, b, "", {given}) y = MatMul(s, o_w)'
    inputs = f"{SEQUENCE}, float[1,B,{HIDDEN}] state"
    analysis = check_cut(graph(body, inputs=inputs, constants=weights("LSTM") | {"o_w": (HIDDEN, 3)}))
    assert open_groups(analysis) == {}
    assert frozen_groups(analysis)["w"] == "n0 begins with the state state, which keeps all its units"


def test_a_state_that_goes_outside_keeps_all_units() -> None:
    body = f"s, last = GRU<hidden_size = {HIDDEN}>(x, w, r, b) y = MatMul(s, o_w)"
    constants = weights("GRU") | {"o_w": (HIDDEN, 3)}
    analysis = check_cut(graph(body, inputs=SEQUENCE, outputs="y; last", constants=constants))
    assert open_groups(analysis) == {}
    assert frozen_groups(analysis)["w"] == "output last of the model"


@pytest.mark.parametrize(("name", "axis"), [("w", 1), ("r", 2)])
def test_weights_from_outside_keep_all_units(name: str, axis: int) -> None:
    body = f"s = RNN<hidden_size = {HIDDEN}>(x, w, r, b) y = MatMul(s, o_w)"
    shape = weights("RNN").pop(name)
    constants = {key: value for key, value in weights("RNN").items() if key != name} | {"o_w": (HIDDEN, 3)}
    inputs = f"{SEQUENCE}, float{list(shape)} {name}"  # type: ignore[arg-type]
    analysis = check_cut(graph(body, inputs=inputs, constants=constants))
    assert open_groups(analysis) == {}
    other = group_of(analysis, "r" if name == "w" else "w", 3 - axis if name == "r" else axis)
    assert other.frozen == f"n0 reads {name}, which is computed and keeps its size"


@pytest.mark.parametrize(
    ("made", "extra"),
    [("m = MatMul(k_w, z)", {"k_w": (HIDDEN, 8)}), ("m = MatMul(zt, k_w)", {"k_w": (8, HIDDEN)})],
)
def test_weights_that_are_known_along_one_axis_keep_all_units(made: str, extra: dict[str, Constant]) -> None:
    """Rows could go, or columns; but a unit is both."""
    body = f"zt = Transpose(z) {made} r = Unsqueeze(m, zero)"
    body += f" s = RNN<hidden_size = {HIDDEN}>(x, w, r, b) y = MatMul(s, o_w)"
    constants = weights("RNN") | extra | {"zero": [0], "o_w": (HIDDEN, 3)}
    del constants["r"]
    inputs = f"{SEQUENCE}, float[8,{HIDDEN}] z"
    analysis = check_cut(graph(body, inputs=inputs, constants=constants))
    assert open_groups(analysis) == {}
    assert "n3 reads r, which is computed and keeps its size" in frozen_groups(analysis).values()


def test_steps_samples_and_directions_stay() -> None:
    """Channels that become steps or samples of a sequence are kept, whatever way they come."""
    body = f"""
        h = MatMul(z, a_w) t = Transpose<perm = {{perm}}>(h) s = GRU<hidden_size = {HIDDEN}>(t, w, r, b)
        y = MatMul(s, o_w)
    """
    constants = weights("GRU") | {"a_w": (3, 8), "o_w": (HIDDEN, 3)}
    for perm in ("[2, 0, 1]", "[0, 2, 1]"):
        model = graph(body.format(perm=perm), inputs=f"float[N,{INPUT},3] z", constants=constants)
        analysis = check_cut(model)
        assert open_groups(analysis) == {"w": HIDDEN}
        assert frozen_groups(analysis)["a_w"] == "n2 runs along this axis"


def test_a_single_unit_stays() -> None:
    body = "s = LSTM<hidden_size = 1>(x, w, r, b) y = MatMul(s, o_w)"
    constants: dict[str, Constant] = {"w": (1, 4, INPUT), "r": (1, 4, 1), "b": (1, 8), "o_w": (1, 3)}
    assert open_groups(check_cut(graph(body, inputs=SEQUENCE, constants=constants))) == {}


# --- layout 1, which ONNX Runtime's CPU provider does not run -----------------------------------------------


@pytest.mark.parametrize("op", GATES)
def test_batch_first(op: str) -> None:
    """Cut and twin agree in ONNX's own reference, at two sizes."""
    body = f"""
        s, l = {op}<hidden_size = {HIDDEN}, layout = 1>(x, w, r, b, "", h0)
        ys = MatMul(s, o_w) yl = MatMul(l, q_w)
    """
    constants = weights(op) | {"h0": (2, 1, HIDDEN), "o_w": (HIDDEN, 3), "q_w": (HIDDEN, 3)}
    model = graph(body, inputs=f"float[2,T,{INPUT}] x", outputs="ys; yl", constants=constants)
    analysis = analyze(model)
    assert open_groups(analysis) == {"w": HIDDEN}
    assert ("h0", 2, False) in positions(group_of(analysis, "r", 2))
    gone = analysis.removed_labels(some_channels(analysis, 0, 0.5))
    pruned = ReferenceEvaluator(ir.to_proto(cut(analysis.model, analysis.channels, gone)))
    twin = ReferenceEvaluator(ir.to_proto(make_twin(model, analysis.channels, gone)))
    whole = ReferenceEvaluator(ir.to_proto(model))
    for steps in (1, 4):
        x = np.random.default_rng(steps).standard_normal((2, steps, INPUT)).astype(np.float32)
        found, expected, other = (runner.run(None, {"x": x}) for runner in (pruned, twin, whole))
        for a, b, c in zip(found, expected, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
            assert np.abs(b - c).max() > 1e-2


# --- weights in pieces, states made of sizes ----------------------------------------------------------------


def test_weights_put_together_from_slices_of_what_torch_stores() -> None:
    """Gates in another order, biases joined, an axis for the direction: as exported without folding."""
    body = """
        g0 = Slice(weight_ih, i6, i12, i0) g1 = Slice(weight_ih, i0, i6, i0)
        g2 = Slice(weight_ih, i12, i18, i0)
        wj = Concat<axis = 0>(g0, g1, g2) w = Unsqueeze(wj, i0)
        q0, q1, q2 = Split<axis = 0>(weight_hh, thirds) rj = Concat<axis = 0>(q1, q0, q2)
        r = Unsqueeze(rj, i0)
        b0 = Slice(b_ih, i0, i6, i0) b1 = Slice(b_ih, i6, i18, i0) bj = Concat<axis = 0>(b1, b0)
        bb = Concat<axis = 0>(bj, b_hh) b = Unsqueeze(bb, i0)
        s = GRU<hidden_size = 6>(x, w, r, b) y = MatMul(s, o_w)
    """
    constants: dict[str, Constant] = {
        "weight_ih": (18, INPUT), "weight_hh": (18, HIDDEN), "b_ih": (18,), "b_hh": (18,), "o_w": (HIDDEN, 3),
        "i0": [0], "i6": [6], "i12": [12], "i18": [18], "thirds": [6, 6, 6],
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert open_groups(analysis) == {"weight_ih_joined": HIDDEN}
    assert positions(group_of(analysis, "weight_hh_joined", 2)) == {
        ("weight_ih_joined", 1, False), ("weight_hh_joined", 1, False), ("weight_hh_joined", 2, True),
        ("b_ih_joined", 1, False), ("o_w", 0, True),
    }  # fmt: skip


ZEROS = {
    "filled": "z = ConstantOfShape(t)",
    "filled for all layers": "zz = ConstantOfShape(tt) z = Slice(zz, one, two, zero)",
    "expanded": "z = Expand(nothing, t)",
    "expanded and cast": "ze = Expand(nothing, t) z = Cast<to = 1>(ze)",
}


@pytest.mark.parametrize("made", ZEROS)
def test_states_of_zeros_follow_the_layer(made: str) -> None:
    body = f"""
        i = Shape(x) n = Gather(i, one) t = Concat<axis = 0>(one, n, h) tt = Concat<axis = 0>(two, n, h)
        {ZEROS[made]}
        s = LSTM<hidden_size = {HIDDEN}>(x, w, r, b, "", z, z) y = MatMul(s, o_w)
    """
    constants = weights("LSTM") | {
        "zero": [0], "one": [1], "two": [2], "h": [HIDDEN], "nothing": np.zeros((), np.float32),
        "o_w": (HIDDEN, 3),
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert open_groups(analysis) == {"w": HIDDEN}


@pytest.mark.parametrize("filling", ["z = ConstantOfShape<value = float[1] {0.7}>(t)", "z = Expand(some, t)"])
def test_states_of_one_number_shrink_with_the_layer(filling: str) -> None:
    body = f"""
        i = Shape(x) n = Gather(i, one) t = Concat<axis = 0>(one, n, h) {filling}
        s = GRU<hidden_size = {HIDDEN}>(x, w, r, b, "", z) y = MatMul(s, o_w)
    """
    constants = weights("GRU") | {
        "one": [1], "h": [HIDDEN], "some": np.full((), 0.7, np.float32), "o_w": (HIDDEN, 3)
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert open_groups(analysis) == {"w": HIDDEN}


def test_trained_states_in_one_table_for_two_layers() -> None:
    """Repeated for the batch, then sliced: a column of the table is a unit of both layers."""
    body = f"""
        i = Shape(x) n = Gather(i, one) t = Concat<axis = 0>(one, n, one) z = Expand(table, t)
        z0 = Slice(z, zero, one, zero) z1 = Slice(z, one, two, zero)
        s = GRU<hidden_size = {HIDDEN}>(x, a_w, a_r, a_b, "", z0) u = Squeeze(s, one)
        v = GRU<hidden_size = {HIDDEN}>(u, c_w, c_r, c_b, "", z1) y = MatMul(v, o_w)
    """
    constants = weights("GRU", 1, "a_") | weights("GRU", 1, "c_", HIDDEN) | {
        "zero": [0], "one": [1], "two": [2], "table": (2, 1, HIDDEN), "o_w": (HIDDEN, 3)
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert list(open_groups(analysis).values()) == [HIDDEN]
    assert {("table", 2, False), ("a_r", 2, True), ("c_r", 2, True)} < positions(group_of(analysis, "a_r", 2))


def test_the_last_state_of_one_layer_of_several() -> None:
    """``h_n[-1]``: picking from joined states does not tie the layers together."""
    body = f"""
        s, h = GRU<hidden_size = {HIDDEN}>(x, a_w, a_r, a_b) u = Squeeze(s, one)
        v, g = GRU<hidden_size = {HIDDEN}>(u, c_w, c_r, c_b) j = Concat<axis = 0>(h, g)
        last = Gather<axis = 0>(j, minus) y = Gemm(last, o_w)
    """
    constants = weights("GRU", 1, "a_") | weights("GRU", 1, "c_", HIDDEN) | {
        "one": [1], "minus": np.array(-1), "o_w": (HIDDEN, 3)
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants))
    assert open_groups(analysis) == {"a_w": HIDDEN, "c_w": HIDDEN}


# --- cost and masks -----------------------------------------------------------------------------------------


def test_every_weight_is_multiplied_once_a_step() -> None:
    body = f's = LSTM<hidden_size = {HIDDEN}, direction = "bidirectional">(x, w, r, b) y = Relu(s)'
    analysis = analyze(graph(body, inputs="float[7,N,5] x", constants=weights("LSTM", 2)))
    cost = cost_of(analysis.model.graph, analysis.channels)
    assert cost.macs == 7 * analysis.shapes.shape(analysis.model.graph.inputs[0])[1] * 2 * 24 * (5 + 6)  # type: ignore[index]


def test_masks_run_along_what_is_summed() -> None:
    body = f"s = GRU<hidden_size = {HIDDEN}>(x, w, r, b) y = MatMul(s, o_w)"
    uses, skipped = find_weights(
        graph(body, inputs=SEQUENCE, constants=weights("GRU") | {"o_w": (HIDDEN, 3)})
    )
    assert [(use.tensor, use.summed_axis, use.output_axis) for use in uses] == [
        ("w", 2, 1), ("r", 2, 1), ("o_w", 0, 1),
    ]  # fmt: skip
    assert skipped == []


def test_the_cut_model_is_valid_for_the_checker() -> None:
    body = f"s = LSTM<hidden_size = {HIDDEN}>(x, w, r, b) y = MatMul(s, o_w)"
    model = graph(body, inputs=SEQUENCE, constants=weights("LSTM") | {"o_w": (HIDDEN, 3)})
    pruned = cut_some(analyze(model))
    onnx.checker.check_model(ir.to_proto(pruned), full_check=True)
    left = recurrent_node(pruned).attributes.get_int("hidden_size", 0)
    assert pruned.graph.initializers["r"].const_value.shape == (1, 4 * left, left)  # type: ignore[union-attr]
