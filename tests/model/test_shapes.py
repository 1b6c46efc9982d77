"""Sizes of all values: concrete at the chosen inputs, and which of them depend on the input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph
from generated import generated_model

from onnxprune.errors import ModelError, UsageError
from onnxprune.feeds import random_feeds
from onnxprune.model.inputs import graph_inputs, trial_shapes
from onnxprune.model.shapes import Shapes, concretise, input_shapes
from onnxprune.runtime import open_session


def value(model: ir.Model, name: str) -> ir.Value:
    return next(v for node in model.graph for v in node.outputs if v.name == name)


def described(shapes: Shapes, model: ir.Model, name: str) -> list[str]:
    return [dim.label for dim in shapes.dims[value(model, name)]]


@pytest.mark.parametrize("seed", range(5))
def test_every_shape_is_the_one_that_runs(seed: int) -> None:
    proto = generated_model(seed, 5)
    model = ir.from_proto(proto)
    shapes = concretise(model)
    assert shapes.unknown == {}
    names = [out for node in proto.graph.node for out in node.output]
    known = {out.name for out in proto.graph.output}
    proto.graph.output.extend(type(proto.graph.output[0])(name=name) for name in names if name not in known)
    observed = ir.from_proto(proto)
    session = open_session(observed, threads=1, label="all values")
    run = session.run(random_feeds(observed, shapes.input_shapes, 0))
    for node in model.graph:
        for out in node.outputs:
            assert shapes.shape(out) == run[str(out.name)].shape, out.name


def test_symbolic_and_static_axes() -> None:
    model = graph(
        "h = Conv<strides = [2, 2]>(x, w) f = Flatten(h) y = Relu(h)", constants={"w": (8, 3, 2, 2)}
    )
    shapes = concretise(model)
    assert described(shapes, model, "h") == ["N", "8", "3", "3"]
    assert described(shapes, model, "f") == ["N", "72"]


def test_symbols_are_multiplied_and_divided_by_reshapes() -> None:
    model = graph(
        "a = Reshape(x, merge) b = Reshape(a, split) c = Reshape(x, keep) y = Relu(b)",
        inputs="float[N,T,12] x",
        constants={"merge": [-1, 4], "split": [-1, 12], "keep": [0, 0, 3, -1]},
    )
    shapes = concretise(model)
    assert described(shapes, model, "a") == ["3*N*T", "4"]
    assert described(shapes, model, "b") == ["N*T", "12"]
    assert described(shapes, model, "c") == ["N", "T", "3", "4"]


def test_the_same_symbol_has_the_same_size_everywhere() -> None:
    model = graph("y = Add(x, z)", inputs="float[N,T] x, float[N,T] z")
    shapes = input_shapes(model)
    assert shapes["x"] == shapes["z"]


def test_an_axis_named_as_a_sum_has_the_size_of_its_parts() -> None:
    """A mask over what a cache holds and what is new, as exporters of decoders name it."""
    model = graph(
        "a = Concat<axis = 1>(p, x) y = Add(a, m)",
        inputs="float[N,all] m, float[N,new] x, float[N,past] p",
    )
    model.graph.inputs[0].shape = ir.Shape(["N", "past + new"])  # ONNX text has no such names
    shapes = input_shapes(model)
    assert shapes["m"][1] == shapes["x"][1] + shapes["p"][1]


def test_a_convolution_says_how_many_channels_an_input_has() -> None:
    model = graph(
        "y = Conv<group = 2>(x, w)", inputs="float[N,channels,H,W] x", constants={"w": (8, 5, 2, 2)}
    )
    assert input_shapes(model)["x"][1] == 10
    assert not concretise(model).dims[model.graph.inputs[0]][1].is_constant


def test_axes_without_names_are_symbolic_too() -> None:
    model = graph("y = Relu(x)", inputs="float[?,3] x")
    shapes = concretise(model)
    assert not shapes.dims[model.graph.inputs[0]][0].is_constant


def test_sizes_are_tried_until_the_graph_fits() -> None:
    """Only 32 x 32 images flatten to what the head takes."""
    model = graph(
        "h = MaxPool<kernel_shape = [8, 8], strides = [8, 8]>(x) f = Flatten(h) y = MatMul(f, w)",
        inputs="float[N,3,H,W] x",
        constants={"w": (48, 5)},
    )
    assert input_shapes(model)["x"][1:] == (3, 32, 32)


def test_given_sizes_win() -> None:
    model = graph("y = Relu(x)", inputs="float[N,3,H,W] x")
    assert input_shapes(model, {"x": [5, 3, 7, 9]}) == {"x": (5, 3, 7, 9)}


@pytest.mark.parametrize(
    ("given", "message"),
    [({"z": [1, 3]}, "no input"), ({"x": [1, 3, 4]}, "rank 2"), ({"x": [1, 4]}, "axis 1 of input 'x' is 3")],
)
def test_sizes_that_do_not_fit_are_refused(given: dict[str, list[int]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        input_shapes(graph("y = Relu(x)", inputs="float[N,3] x"), given)


def test_an_input_without_a_rank_needs_a_shape() -> None:
    model = graph("y = Relu(x)", inputs="float[N,3] x")
    model.graph.inputs[0].shape = None
    with pytest.raises(ModelError, match="--input-shape x="):
        input_shapes(model)
    assert input_shapes(model, {"x": [2, 3]}) == {"x": (2, 3)}


@pytest.mark.parametrize(
    ("body", "weight", "shape"),
    [
        ("y = MatMul(x, w)", (6, 5), (2, 6)),
        ("y = Gemm(x, w)", (6, 5), (2, 6)),
        ("y = Gemm<transB = 1>(x, w)", (6, 5), (2, 5)),
        ("y = Conv(x, w)", (8, 3, 3, 3), (2, 3, 64, 64)),
        ("y = Conv<group = 2>(x, w)", (8, 3, 3), (2, 6, 64)),
        ("z = Relu(x) y = MatMul(x, w)", (6, 5), (2, 6)),
    ],
)
def test_a_layer_tells_what_an_input_without_a_rank_is(
    body: str, weight: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    model = graph(body, inputs="float[N,M] x", constants={"w": weight})
    model.graph.inputs[0].shape = None
    assert input_shapes(model) == {"x": shape}


@pytest.mark.parametrize(
    "body", ["y = MatMul(w, x)", "y = Gemm<transA = 1>(x, w)", "y = Add(x, w)", "y = com.microsoft.Gelu(x)"]
)
def test_other_nodes_do_not_tell(body: str) -> None:
    constants = {"w": (6, 6)} if "w" in body else {}
    model = graph(body, inputs="float[6,6] x", constants=constants)
    model.graph.inputs[0].shape = None
    with pytest.raises(ModelError, match="has no rank"):
        input_shapes(model)


def test_initializers_that_are_inputs_need_not_be_fed() -> None:
    model = graph("y = Add(x, w)", inputs="float[N,3] x, float[3] w", constants={"w": (3,)})
    assert [v.name for v in graph_inputs(model)] == ["x"]
    assert list(input_shapes(model)) == ["x"]


def test_unknown_operators_have_unknown_shapes_with_the_reason() -> None:
    model = graph("h = com.microsoft.NoSuchOp(x) y = Relu(h)", inputs="float[N,3] x")
    shapes = concretise(model)
    assert "com.microsoft.NoSuchOp is not a standard operator" in shapes.unknown[value(model, "h")]
    assert shapes.shape(value(model, "y")) is None


def test_declared_shapes_help_behind_unknown_operators() -> None:
    model = graph("h = com.microsoft.NoSuchOp(x) y = Relu(h)", inputs="float[2,3] x")
    value(model, "h").shape = ir.Shape([2, 7])
    assert concretise(model).shape(value(model, "y")) == (2, 7)


def test_operands_that_do_not_fit_are_reported() -> None:
    model = graph("y = Relu(x)", inputs="float[2,3] x")
    matmul = ir.node("MatMul", [model.graph.inputs[0], model.graph.inputs[0]])
    matmul.outputs[0].name = "z"
    model.graph.append(matmul)
    shapes = concretise(model)
    assert "MatMul does not fit its inputs" in shapes.unknown[matmul.outputs[0]]


def test_contents_of_small_constants() -> None:
    model = graph("y = Reshape(x, s)", inputs="float[N,6] x", constants={"s": [-1, 3]})
    shapes = concretise(model)
    np.testing.assert_array_equal(shapes.constant(model.graph.initializers["s"]), [-1, 3])
    assert shapes.constant(None) is None


# --- bodies ---


def inner(model: ir.Model, name: str) -> ir.Value:
    return next(v for node in model.graph.all_nodes() for v in node.outputs if v.name == name)


def of_body(shapes: Shapes, model: ir.Model, name: str) -> list[str]:
    return [dim.label for dim in shapes.dims[inner(model, name)]]


def test_branches_that_agree_and_that_do_not() -> None:
    body = """
        q, r = If(c) <then_branch = t () => (float a, float b) { a = Relu(x) b = Concat<axis = 1>(x, x) },
                      else_branch = e () => (float d, float f) { d = Tanh(x) f = Neg(x) }>
        y = Add(q, q) z = Relu(r)
    """
    model = graph(body, inputs="float[N,3] x, bool c", outputs="y; z")
    shapes = concretise(model)
    assert shapes.unknown == {}
    assert of_body(shapes, model, "b") == ["N", "6"]
    assert described(shapes, model, "y") == ["N", "3"]
    assert described(shapes, model, "r") == ["N", "r.1"]


def test_branches_of_different_ranks_are_not_known() -> None:
    body = """
        q = If(c) <then_branch = t () => (float a) { a = Relu(x) },
                   else_branch = e () => (float d) { d = ReduceSum<keepdims = 0>(x) }>
        y = Relu(q)
    """
    model = graph(body, inputs="float[N,3] x, bool c")
    assert "different ranks" in concretise(model).unknown[value(model, "q")]


LOOP = """
    h, g, s = Loop({trips}, {go}, x, x) <
        body = b (int64 i, bool c, float p, float q) => (bool d, float t, float u, float v) {{
            t = Tanh(p) u = Concat<axis = 0>(q, x) v = ReduceSum<axes = [1], keepdims = 0>(p) d = {ends} }}>
    y = Relu(h)
"""


@pytest.mark.parametrize(
    ("trips", "go", "ends", "count"),
    [
        ("m", "", "Identity(c)", "4"),
        ("m", "yes", "Identity(c)", "4"),
        ("m", "", "Identity(yes)", "4"),
        ("n", "", "Identity(c)", "s.0"),
        ("m", "", "Less(i, m)", "s.0"),
        ("m", "no", "Identity(c)", "s.0"),
        ("", "yes", "Less(i, m)", "s.0"),
    ],
)
def test_states_and_stacks_of_loops(trips: str, go: str, ends: str, count: str) -> None:
    """p keeps its shape, q grows along its first axis; the trip count is known or not."""
    constants = {"m": np.array(4), "yes": np.array(True), "no": np.array(False)}
    text = LOOP.format(trips=trips, go=go, ends=ends)
    model = graph(text, inputs="float[N,3] x, int64 n", constants=constants, opset=12)
    shapes = concretise(model)
    assert shapes.unknown == {}
    assert described(shapes, model, "h") == ["N", "3"]
    assert described(shapes, model, "g") == ["g.0", "3"]
    assert described(shapes, model, "s") == [count, "N"]
    assert of_body(shapes, model, "u") == ["u.0", "3"]


def test_a_state_of_changing_rank_is_not_known() -> None:
    body = """
        h = Loop(m, , x) <body = b (int64 i, bool c, float p) => (bool d, float t) {
            t = Unsqueeze(p, zero) d = Identity(c) }>
        y = Relu(h)
    """
    model = graph(body, inputs="float[N,3] x", constants={"m": np.array(4), "zero": [0]})
    shapes = concretise(model)
    assert "changes while" in shapes.unknown[value(model, "h")]
    assert value(model, "y") in shapes.unknown


def test_a_number_that_changes_in_a_loop_is_no_constant() -> None:
    """The length of the slice grows with the state k, which begins as a constant."""
    body = """
        k2, r = Loop(m, , one) <body = b (int64 i, bool c, int64[1] k) => (bool d, int64[1] n, float t) {
            w = Slice(x, zero, k, zero) t = ReduceSum<keepdims = 0>(w) n = Add(k, one) d = Identity(c) }>
        y = Relu(r)
    """
    model = graph(body, inputs="float[8,3] x", constants={"m": np.array(4), "zero": [0], "one": [1]})
    shapes = concretise(model)
    assert inner(model, "n") not in shapes.contents
    assert shapes.constant(value(model, "k2")) is None


def test_slices_and_stacks_of_a_scan() -> None:
    body = """
        h, s = Scan(z, x) <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [-1],
            body = b (float p, float q) => (float t, float v) { t = Add(p, q) v = Concat<axis = 1>(t, t) }>
        y = Relu(s)
    """
    model = graph(body, inputs="float[N,T,3] x, float[N,3] z")
    shapes = concretise(model)
    assert described(shapes, model, "h") == ["N", "3"]
    assert described(shapes, model, "y") == ["N", "6", "T"]


def test_another_batch_is_another_batch_for_every_input() -> None:
    """Time comes first in one input, the batch in the other: one symbol has one size."""
    model = graph("y = Add(x, z)", inputs="float[T,N,3] x, float[N,3] z")
    first, other = trial_shapes(model, {"x": (2, 16, 3), "z": (16, 3)})
    assert (first["x"], first["z"]) == ((2, 16, 3), (16, 3))
    assert (other["x"], other["z"]) == ((1, 1, 3), (1, 3))


def test_operators_whose_shapes_onnx_does_not_tell() -> None:
    body = """
        g = GroupNormalization<num_groups = 3>(x, s, s) m = MeanVarianceNormalization(g) y = Relu(m)
    """
    model = graph(body, constants={"s": (3,)}, opset=21)
    assert described(concretise(model), model, "y") == ["N", "3", "6", "6"]


def test_operators_whose_shapes_a_later_opset_tells() -> None:
    body = "f = GreaterOrEqual(x, s) y = Where(f, x, s)"
    model = graph(body, constants={"s": (3, 1, 1)}, opset=12)
    assert described(concretise(model), model, "y") == ["N", "3", "6", "6"]


def test_a_length_that_was_fixed_while_tracing_is_found() -> None:
    """A recurrence that the exporter unrolled fits sequences of one length, whatever the input declares."""
    model = graph(
        "h = MatMul(x, a_w) y = Add(h, b_w)", inputs="float[N,S,6] x",
        constants={"a_w": (6, 4), "b_w": (12, 4)},
    )  # fmt: skip
    assert concretise(model).input_shapes["x"][1] == 12


def test_a_cast_to_half_meets_weights_of_half() -> None:
    """Statistics in float32 between weights in float16, as exporters write them, without types of values."""
    model = graph(
        "s = ReduceSum<keepdims = 1>(x, last) h = Cast<to = 10>(s) m = MatMul(h, w) y = Cast<to = 1>(m)",
        inputs="float[N,4] x",
        constants={"last": [-1], "w": np.ones((1, 8), np.float16)},
    )
    shapes = concretise(model)
    assert shapes.unknown == {}
    assert described(shapes, model, "m") == ["N", "8"]
