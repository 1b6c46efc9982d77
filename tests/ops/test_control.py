"""Control flow: weights inside bodies go with channels outside, and the proof runs what a condition hides."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import (
    check_cut,
    frozen_groups,
    graph,
    group_of,
    open_groups,
    positions,
    some_channels,
    trial_shapes,
)

from onnxprune.analyze import Analysis, analyze
from onnxprune.cost import cost_of
from onnxprune.prove import prove
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.twin import make_twin

IMAGE = "float[N,3,6,6] x, bool c"
OUTER = {"a_w": (8, 3, 3, 3), "b_w": (5, 8, 1, 1)}
STEPS = "float[5,N,3] x, float[N,6] s"
CELL = {"i_w": (6, 8), "x_w": (3, 8), "h_w": (8, 8), "o_w": (8, 4), "f_w": (8, 2), "gain": (8,)}


def numbers(*shape: int, seed: int = 0) -> str:
    """Return the text of a float tensor."""
    values = np.random.default_rng(seed).standard_normal(shape).round(2).ravel()
    return f"float[{','.join(map(str, shape))}] {{{', '.join(map(str, values))}}}"


def cell(state: str = "float[N,8] h", result: str = "float[N,8] t", more: str = "") -> str:
    """Return a body of a Loop over the steps of x: t = tanh(x_i W + h V), and t * gain, to be stacked."""
    return f"""<body = b (int64 i, bool go, {state}) => (bool on, {result}, float[N,8] part) {{
        xi = Gather<axis = 0>(x, i) a = MatMul(xi, x_w) r = MatMul(h, h_w) q = Add(a, r) t = Tanh(q) {more}
        on = Identity(go) part = Mul(t, gain)
    }}>"""


# --- If ---


def branches(then: str, other: str) -> str:
    return f"""
        h = Conv(x, a_w)
        q = If(c) <then_branch = yes () => (float[N,8,4,4] o) {{{then}}},
                   else_branch = no () => (float[N,8,4,4] o) {{{other}}}>
        y = Conv(q, b_w)
    """


@pytest.mark.parametrize("condition", ["bool c", "bool[1] c"])
def test_weights_in_branches_go_with_the_channels_around_them(condition: str) -> None:
    """One branch has an initializer of the outer graph, the other a Constant of its own: both names are o."""
    body = branches(
        "s = Sigmoid(h) o = Mul(s, gate)",
        f"k = Constant<value = {numbers(8, 8, 1, 1)}>() v = Conv(h, k) o = Relu(v)",
    )
    model = graph(body, inputs=f"float[N,3,6,6] x, {condition}", constants={**OUTER, "gate": (8, 1, 1)})
    analysis = check_cut(model)
    assert open_groups(analysis) == {"a_w": 8}
    members = positions(group_of(analysis, "a_w", 0))
    assert members == {
        ("a_w", 0, False), ("gate", 0, False), ("k", 0, False), ("k", 1, True), ("b_w", 1, True),
    }  # fmt: skip
    assert analysis.unknown == ()


def test_a_branch_with_channels_of_its_own() -> None:
    """Hidden channels within a branch are a group; equal names in the other branch are other values."""
    body = branches(
        f"w = Constant<value = {numbers(6, 8, 1, 1)}>() m = Conv(h, w) r = Relu(m) "
        f"v = Constant<value = {numbers(8, 6, 1, 1, seed=1)}>() o = Conv(r, v)",
        f"w = Constant<value = {numbers(4, 8, 1, 1, seed=2)}>() m = Conv(h, w) r = Relu(m) "
        f"v = Constant<value = {numbers(8, 4, 1, 1, seed=3)}>() o = Conv(r, v)",
    )
    analysis = check_cut(graph(body, inputs=IMAGE, constants=OUTER))
    assert sorted(open_groups(analysis).values()) == [4, 6, 8, 8]


def test_a_branch_that_returns_a_constant_or_the_outer_value() -> None:
    body = branches("o = Identity(h)", f"o = Constant<value = {numbers(1, 8, 4, 4)}>()")
    model = graph(body, inputs="float[1,3,6,6] x, bool c", constants=OUTER)
    analysis = check_cut(model)
    assert open_groups(analysis) == {"a_w": 8}
    assert {axis for name, axis, _ in positions(group_of(analysis, "a_w", 0)) if name.startswith("o")} == {1}


def test_a_branch_without_channels_freezes_the_other() -> None:
    model = graph(
        branches("o = Relu(h)", "o = Tanh(z)"), inputs=IMAGE + ", float[N,8,4,4] z", constants=OUTER
    )
    analysis = check_cut(model)
    assert open_groups(analysis) == {}
    assert "returns no channels along this axis" in frozen_groups(analysis)["a_w"]


def test_branches_of_different_ranks_freeze_what_they_return() -> None:
    """The hidden channels inside go all the same."""
    body = f"""
        h = Conv(x, a_w)
        q = If(c) <then_branch = yes () => (float[] o) {{ o = ReduceSum<keepdims = 0>(h) }},
                   else_branch = no () => (float[N,8,4,4] o) {{
                       w = Constant<value = {numbers(6, 8, 1, 1)}>() m = Conv(h, w) r = Relu(m)
                       v = Constant<value = {numbers(8, 6, 1, 1, seed=1)}>() o = Conv(r, v) }}>
        y = Relu(q)
    """
    model = graph(body, inputs=IMAGE, constants={"a_w": OUTER["a_w"]})
    assert sorted(open_groups(check_cut(model)).values()) == [6, 8]


def test_what_follows_an_unknown_shape_is_left_alone() -> None:
    """A Gather whose sizes are not known has nothing to repair, while channels before the If go."""
    body = """
        h = Conv(x, a_w) k = Conv(h, k_w)
        q = If(c) <then_branch = yes () => (float[] o) { o = ReduceSum<keepdims = 0>(k) },
                   else_branch = no () => (float[N,4,4,4] o) { o = Relu(k) }>
        f = Reshape(q, minus) y = Gather(f, zero)
    """
    constants = {"a_w": (8, 3, 3, 3), "k_w": (4, 8, 1, 1), "minus": [-1], "zero": [0]}
    analysis = check_cut(graph(body, inputs=IMAGE, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}
    assert "is not known" in next(entry.reason for entry in analysis.unknown if entry.name == "n4")


def test_branches_of_different_lengths_keep_that_axis() -> None:
    """One branch crops the image: channels go, positions in space stay."""
    body = branches("o = Slice(h, zero, three, two)", "o = Relu(h)").replace(
        "float[N,8,4,4]", "float[N,8,A,4]"
    )
    constants = {**OUTER, "zero": [0], "three": [3], "two": [2]}
    analysis = check_cut(graph(body, inputs=IMAGE, constants=constants))
    assert open_groups(analysis) == {"a_w": 8}


def test_branches_of_different_channel_counts_keep_their_channels() -> None:
    """What follows takes the largest of however many channels there are."""
    body = """
        h = Conv(x, a_w)
        q = If(c) <then_branch = yes () => (float[N,A,4,4] o) { o = Slice(h, zero, three, one) },
                   else_branch = no () => (float[N,A,4,4] o) { o = Relu(h) }>
        y = ReduceMax<axes = [1]>(q)
    """
    constants = {"a_w": (8, 3, 3, 3), "zero": [0], "three": [3], "one": [1]}
    analysis = check_cut(graph(body, inputs=IMAGE, constants=constants))
    assert open_groups(analysis) == {}
    assert any("may have differ" in reason for reason in frozen_groups(analysis).values())


def test_nested_conditions_that_data_never_meets_are_run_all_the_same() -> None:
    """A mean of random numbers is never above 1000, so only forcing the condition shows that branch."""
    body = branches(
        f"""m = ReduceMean<keepdims = 0>(x) far = Constant<value = float {{1000.0}}>() d = Greater(m, far)
            o = If(d) <then_branch = far_yes () => (float[N,8,4,4] p) {{
                           k = Constant<value = {numbers(8, 8, 1, 1)}>() p = Conv(h, k) }},
                       else_branch = far_no () => (float[N,8,4,4] p) {{ p = Relu(h) }}>""",
        "o = Sigmoid(h)",
    )
    analysis = check_cut(graph(body, inputs=IMAGE, constants=OUTER))
    assert open_groups(analysis) == {"a_w": 8, "Conv_8": 8} or set(open_groups(analysis).values()) == {8}
    gone = analysis.removed_labels(some_channels(analysis, 0, 0.4))
    twin = make_twin(analysis.original, analysis.channels, gone)
    pruned = cut(analysis.model, analysis.channels, gone)
    check = prove(twin, pruned, trial_shapes(analysis), tolerance=1e-4)
    assert check.passed
    assert "both branches of 2 If" in check.detail
    hidden = pruned.graph.initializers["k"]
    hidden.const_value = ir.tensor(hidden.const_value.numpy() * 1.5, name="k")  # type: ignore[union-attr]
    assert not prove(twin, pruned, trial_shapes(analysis), tolerance=1e-4).passed


def test_statistics_that_a_branch_returns_are_taken_over_what_is_kept() -> None:
    body = """
        h = MatMul(x, a_w)
        q = If(c) <then_branch = yes () => (float[N,8] o) { o = LayerNormalization(h, gain) },
                   else_branch = no () => (float[N,8] o) { o = Tanh(h) }>
        y = MatMul(q, b_w)
    """
    constants = {"a_w": (6, 8), "gain": (8,), "b_w": (8, 3)}
    model = graph(body, inputs="float[N,6] x, bool c", constants=constants)
    assert "mean and deviation" in frozen_groups(check_cut(model))["a_w"]
    assert open_groups(check_cut(model, allow_inexact=True)) == {"a_w": 8}


def test_a_branch_that_never_runs_is_named() -> None:
    """The original itself fails there: it asks for another number of elements."""
    body = """
        s = ReduceSum<keepdims = 0>(x) n = Mul(s, s) c = GreaterOrEqual(n, t) h = Conv(x, a_w) q = If(c) <
            then_branch = yes () => (float[N,8,4,4] o) { o = Relu(h) },
            else_branch = no () => (float[N,8,4,4] o) { w = Reshape(h, wrong) o = Reshape(w, right) }>
        y = Conv(q, b_w)
    """
    constants = {**OUTER, "wrong": [-1, 77], "right": [-1, 8, 4, 4]}
    model = graph(body, constants={**constants, "t": np.array(0.0, np.float32)})
    analysis = analyze(model)
    gone = analysis.removed_labels({})
    twin = make_twin(analysis.original, analysis.channels, gone)
    pruned = cut(analysis.model, analysis.channels, gone)
    check = prove(twin, pruned, trial_shapes(analysis), tolerance=1e-4)
    assert check.passed
    assert "the else branch of" in check.detail
    assert "never ran" in check.detail


# --- Loop ---


def loop(initial: str, trips: str = "m", more: str = "") -> str:
    return f"""
        h0 = {initial} last, stack = Loop({trips}, , h0) {cell(more=more)}
        y = MatMul(stack, o_w) z = MatMul(last, f_w)
    """


def test_a_state_and_a_stack_of_a_loop() -> None:
    model = graph(loop("MatMul(s, i_w)"), inputs=STEPS, outputs="y; z", constants={**CELL, "m": np.array(5)})
    analysis = check_cut(model)
    (size,) = open_groups(analysis).values()
    assert size == 8
    assert positions(group_of(analysis, "i_w", 1)) == {
        ("i_w", 1, False), ("x_w", 1, False), ("h_w", 0, True), ("h_w", 1, False), ("gain", 0, False),
        ("o_w", 0, True), ("f_w", 0, True),
    }  # fmt: skip


def test_a_constant_first_state_is_cut() -> None:
    model = graph(
        loop("Identity(start)"),
        inputs="float[5,2,3] x",
        outputs="y; z",
        constants={**CELL, "start": (2, 8), "m": np.array(5)},
    )
    analysis = check_cut(model)
    assert ("start", 1, False) in positions(group_of(analysis, "x_w", 1))


def test_a_first_state_of_zeros_is_cut() -> None:
    body = "e = Shape(x) n = Slice(e, one, two) k = Concat<axis = 0>(n, eight) " + loop("ConstantOfShape(k)")
    constants = {**CELL, "m": np.array(5), "one": [1], "two": [2], "eight": [8]}
    analysis = check_cut(graph(body, inputs="float[5,N,3] x", outputs="y; z", constants=constants))
    assert list(open_groups(analysis).values()) == [8]


def test_a_first_state_from_outside_keeps_the_state() -> None:
    model = graph(
        loop("Tanh(s)"), inputs=STEPS.replace("6", "8"), outputs="y; z", constants={**CELL, "m": np.array(5)}
    )
    assert open_groups(check_cut(model)) == {}


def test_hidden_channels_of_a_body() -> None:
    """A feed-forward block between two iterations; its weights are captured from outside."""
    body = """
        h0 = MatMul(s, i_w)
        last = Loop(m, , h0) <body = b (int64 i, bool go, float[N,8] h) => (bool on, float[N,8] t) {
            u = MatMul(h, up_w) v = Relu(u) w = MatMul(v, down_w) t = Add(h, w) on = Identity(go) }>
        y = MatMul(last, f_w)
    """
    constants = {"i_w": (6, 8), "up_w": (8, 12), "down_w": (12, 8), "f_w": (8, 2), "m": np.array(3)}
    analysis = check_cut(graph(body, inputs="float[N,6] s", constants=constants))
    assert open_groups(analysis) == {"i_w": 8, "up_w": 12}
    whole = cost_of(analysis.model.graph, analysis.channels)
    assert whole.macs == 6 * 8 + 3 * (8 * 12 + 12 * 8) + 8 * 2


def test_weights_that_are_carried_through_a_loop_unchanged() -> None:
    """Some exporters hand a body its weights as states."""
    body = """
        h0 = MatMul(s, i_w)
        last, kept = Loop(m, , h0, k_w) <

                body = b (int64 i, bool go, float[N,8] h, float[8,8] k)
                    => (bool on, float[N,8] t, float[8,8] same) {
                u = MatMul(h, k) t = Tanh(u) on = Identity(go) same = Identity(k) }>
        y = MatMul(last, f_w)
    """
    constants = {"i_w": (6, 8), "k_w": (8, 8), "f_w": (8, 2), "m": np.array(3)}
    analysis = check_cut(graph(body, inputs="float[N,6] s", constants=constants))
    assert open_groups(analysis) == {"i_w": 8}
    assert ("k_w", 0, False) in positions(group_of(analysis, "i_w", 1))


def test_a_loop_that_ends_by_what_it_computes() -> None:
    body = """
        h0 = MatMul(s, i_w)
        n, last, stack = Loop(, yes, zero, h0) <

                body = b (int64 i, bool go, int64 k, float[N,8] h)
                    => (bool on, int64 j, float[N,8] t, float[N,8] p) {
                j = Add(k, one) u = MatMul(h, h_w) t = Tanh(u) on = Less(j, limit) p = Relu(t) }>
        z = MatMul(last, f_w) y = MatMul(stack, o_w)
    """
    constants = {
        **{name: CELL[name] for name in ("i_w", "h_w", "f_w", "o_w")},
        "zero": np.array(0), "one": np.array(1), "limit": np.array(4), "yes": np.array(True),
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs="float[N,6] s", outputs="y; z", constants=constants))
    assert open_groups(analysis) == {"i_w": 8}
    last_shape = analysis.shapes.dims[next(n for n in analysis.model.graph if n.op_type == "Loop").outputs[2]]
    assert not last_shape[0].is_constant


def test_a_state_that_grows_keeps_its_channels() -> None:
    """Steps are joined one by one: time grows, channels go."""
    body = """
        h0 = MatMul(s, i_w) c0 = Unsqueeze(h0, zero)
        all = Loop(m, , c0) <body = b (int64 i, bool go, float[A,N,8] c) => (bool on, float[B,N,8] d) {
            xi = Gather<axis = 0>(x, i) a = MatMul(xi, x_w) e = Unsqueeze(a, zero)
            d = Concat<axis = 0>(c, e) on = Identity(go) }>
        y = MatMul(all, o_w)
    """
    constants = {name: CELL[name] for name in ("i_w", "x_w", "o_w")} | {"zero": [0], "m": np.array(5)}
    analysis = check_cut(graph(body, inputs=STEPS, constants=constants))
    assert open_groups(analysis) == {"i_w": 8}


def test_a_state_whose_rank_changes_is_kept_with_the_reason() -> None:
    body = """
        h0 = MatMul(s, i_w)
        all = Loop(m, , h0) <body = b (int64 i, bool go, float c) => (bool on, float d) {
            d = Unsqueeze(c, zero) on = Identity(go) }>
        y = Relu(all)
    """
    constants = {"i_w": (6, 8), "zero": [0], "m": np.array(2)}
    analysis = analyze(graph(body, inputs="float[N,6] s", constants=constants))
    assert "is not known" in frozen_groups(analysis)["i_w"]


def test_a_condition_inside_a_loop() -> None:
    body = loop(
        "MatMul(s, i_w)",
        more="""odd = Mod(i, two) flag = Cast<to = 9>(odd)
                t2 = If(flag) <then_branch = yes () => (float[N,8] o) { o = MatMul(t, k_w) },
                               else_branch = no () => (float[N,8] o) { o = Relu(t) }>""",
    ).replace("Mul(t, gain)", "Mul(t2, gain)")
    constants = {**CELL, "k_w": (8, 8), "two": np.array(2), "m": np.array(5)}
    analysis = check_cut(graph(body, inputs=STEPS, outputs="y; z", constants=constants))
    assert open_groups(analysis) == {"i_w": 8}
    assert ("k_w", 1, False) in positions(group_of(analysis, "i_w", 1))


def test_a_condition_that_ends_a_loop_is_never_set() -> None:
    """The loop ends where the If takes its second branch: with the first one set, it would run for ever."""
    body = """
        h0 = MatMul(s, i_w)
        n, last = Loop(, yes, zero, h0) <
            body = b (int64 i, bool go, int64 k, float[N,8] h) => (bool on, int64 j, float[N,8] t) {
                j = Add(k, one) u = MatMul(h, h_w) t = Tanh(u) more = Less(j, limit)
                on = If(more) <then_branch = a () => (bool p) { p = Identity(yes) },
                               else_branch = o () => (bool p) { p = Not(yes) }> }>
        y = MatMul(last, f_w)
    """
    constants = {
        **{name: CELL[name] for name in ("i_w", "h_w", "f_w")},
        "zero": np.array(0), "one": np.array(1), "limit": np.array(4), "yes": np.array(True),
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs="float[N,6] s", constants=constants))
    assert open_groups(analysis) == {"i_w": 8}
    gone = analysis.removed_labels(some_channels(analysis, 0, 0.4))
    twin = make_twin(analysis.original, analysis.channels, gone)
    pruned = cut(analysis.model, analysis.channels, gone)
    check = prove(twin, pruned, trial_shapes(analysis), tolerance=1e-4)
    assert check.passed
    assert "1 If ran as their conditions said" in check.detail


# --- Scan ---


def scan(attributes: str = "", out_axis: int = 0) -> str:
    return f"""
        h0 = MatMul(s, i_w) e = MatMul(x, e_w)
        last, stack = Scan(h0, e) <num_scan_inputs = 1, {attributes}
            body = b (float[N,8] h, float[N,10] xi) => (float[N,8] t, float[N,8] part) {{
                a = MatMul(xi, x_w) r = MatMul(h, h_w) q = Add(a, r) t = Tanh(q) part = Mul(t, gain) }}>
        y = MatMul(stack, o_w) z = MatMul(last, f_w)
    """


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ("", "float[T,N,7] x"),
        ("scan_input_axes = [1], scan_output_axes = [1],", "float[N,T,7] x"),
        ("scan_input_axes = [-2], scan_output_axes = [-2],", "float[N,T,7] x"),
        ("scan_input_directions = [1], scan_output_directions = [1],", "float[4,N,7] x"),
    ],
)
def test_states_slices_and_stacks_of_a_scan(attributes: str, shape: str) -> None:
    constants = {**CELL, "e_w": (7, 10), "x_w": (10, 8)}
    model = graph(scan(attributes), inputs=f"{shape}, float[N,6] s", outputs="y; z", constants=constants)
    analysis = check_cut(model)
    assert sorted(open_groups(analysis).values()) == [8, 10]
    assert ("h_w", 0, True) in positions(group_of(analysis, "i_w", 1))
    assert positions(group_of(analysis, "e_w", 1)) == {("e_w", 1, False), ("x_w", 0, True)}


def test_the_axis_that_is_scanned_stays() -> None:
    """Channels are scanned one by one: none may go."""
    body = """
        h = MatMul(x, a_w) z0 = ReduceSum<keepdims = 0>(h, one)
        last = Scan(z0, h) <num_scan_inputs = 1, scan_input_axes = [1],
            body = b (float[N] s, float[N] v) => (float[N] t) { t = Add(s, v) }>
        y = Relu(last)
    """
    analysis = check_cut(graph(body, inputs="float[N,6] x", constants={"a_w": (6, 8), "one": [1]}))
    assert open_groups(analysis) == {}
    assert "runs along this axis" in frozen_groups(analysis)["a_w"]


def test_macs_count_every_step_of_a_scan_and_the_dearer_branch() -> None:
    constants = {**CELL, "e_w": (7, 10), "x_w": (10, 8)}
    model = graph(scan(), inputs="float[4,1,7] x, float[1,6] s", outputs="y; z", constants=constants)
    analysis = analyze(model)
    assert cost_of(analysis.model.graph, analysis.channels).macs == (
        6 * 8 + 4 * 7 * 10 + 4 * (10 * 8 + 8 * 8) + 4 * 8 * 4 + 8 * 2
    )
    dear = branches(
        f"k = Constant<value = {numbers(8, 8, 1, 1)}>() o = Conv(h, k)",
        f"k = Constant<value = {numbers(8, 8, 3, 3)}>() o = Conv<pads = [1, 1, 1, 1]>(h, k)",
    )
    analysis = analyze(graph(dear, inputs="float[1,3,6,6] x, bool c", constants=OUTER))
    assert cost_of(analysis.model.graph, analysis.channels).macs == 16 * (8 * 27 + 8 * 8 * 9 + 5 * 8)


def test_a_constant_condition_leaves_one_branch() -> None:
    body = branches("o = Relu(h)", f"k = Constant<value = {numbers(8, 8, 1, 1)}>() o = Conv(h, k)")
    model = graph(body, inputs="float[N,3,6,6] x", constants={**OUTER, "c": np.array(False)})
    analysis: Analysis = check_cut(model)
    assert [node.op_type for node in analysis.model.graph] == ["Conv", "Conv", "Conv"]
    assert sorted(open_groups(analysis).values()) == [8, 8]
