"""What layers aim at, in which order, and how a change of the target becomes one of the layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from cutting import Constant, graph

from onnxprune.ops.linear import Linear, find_linear
from onnxprune.recover.targets import Target, find_targets, gains
from onnxprune.runtime import open_session

TOKENS = "float[N,4,6] x"


def targets(
    body: str,
    constants: dict[str, Constant],
    *,
    sums: bool = True,
    missing: tuple[str, ...] = (),
    **options: object,
) -> tuple[ir.Model, dict[str, tuple[Linear, Target | None]], dict[str, tuple[int, ...]]]:
    """Return the model, its layers and targets by the name of the weight, and all shapes."""
    model = graph(body, constants=constants, **options)
    linears, _ = find_linear(model)
    names = [str(o.name) for node in model.graph for o in node.outputs]
    inner = [name for name in names if name not in {str(o.name) for o in model.graph.outputs}]
    session = open_session(model, extra_outputs=inner, optimize="none")
    x = model.graph.inputs[0]
    assert x.shape is not None
    feed = np.random.default_rng(0).standard_normal([s if isinstance(s, int) else 2 for s in x.shape])
    shapes = {name: array.shape for name, array in session.run({"x": feed.astype(np.float32)}).items()}
    known = set(names) - set(missing)
    found = find_targets(model.graph, linears, shapes, known, sums=sums)
    by_name = {linear.found.use.tensor: pair for linear, *pair in zip(linears, linears, found, strict=True)}
    return model, {name: (linear, target) for name, (linear, target) in by_name.items()}, shapes


def aims(*args: object, **options: object) -> dict[str, tuple[str, int] | None]:
    """Return value and level by weight."""
    _, found, _ = targets(*args, **options)  # type: ignore[arg-type]
    return {name: None if t is None else (t.value, t.level) for name, (_, t) in found.items()}


def test_a_branch_aims_at_the_sum_and_the_first_layer_at_its_own_result() -> None:
    body = "a = MatMul(x, a_w) r = Relu(a) b = MatMul(r, b_w) c = Add(b, b_b) y = Add(x, c)"
    found = aims(body, {"a_w": (6, 8), "b_w": (8, 6), "b_b": (6,)}, inputs=TOKENS)
    assert found == {"a_w": ("a", 1), "b_w": ("y", 2)}


def test_the_deepest_layer_of_a_sum_comes_last_though_it_is_written_first() -> None:
    """The shortcut is written behind the branch, as exporters do, and is settled first all the same."""
    branch = "a = Conv(x, a_w) r = Relu(a) b = Conv(r, b_w)"
    body = branch + " s = Conv(x, s_w) t = Add(b, s) u = Relu(t) y = Conv(u, e_w)"
    constants: dict[str, Constant] = {
        "a_w": (4, 3, 1, 1), "b_w": (5, 4, 1, 1), "s_w": (5, 3, 1, 1), "e_w": (2, 5, 1, 1)
    }  # fmt: skip
    assert aims(body, constants) == {"a_w": ("a", 1), "s_w": ("s", 1), "b_w": ("t", 2), "e_w": ("y", 3)}


def test_without_sums_every_layer_aims_at_its_own_result() -> None:
    body = "a = MatMul(x, a_w) c = Add(a, b_b) y = Add(x, c)"
    found = aims(body, {"a_w": (6, 6), "b_b": (6,)}, inputs=TOKENS, sums=False)
    assert found == {"a_w": ("c", 1)}


def test_layers_of_parallel_branches_see_each_other() -> None:
    """x + f(x) + g(x): what comes later aims at the sum with all that is settled."""
    body = "f = MatMul(x, f_w) g = MatMul(x, g_w) s = Add(x, f) y = Add(s, g)"
    found = aims(body, {"f_w": (6, 6), "g_w": (6, 6)}, inputs=TOKENS)
    assert found == {"f_w": ("s", 1), "g_w": ("y", 2)}


def test_a_value_that_only_the_pruned_model_has_is_passed() -> None:
    body = "a = MatMul(x, a_w) b = Add(a, b_b) y = Relu(b)"
    constants: dict[str, Constant] = {"a_w": (6, 6), "b_b": (6,)}
    assert aims(body, constants, inputs=TOKENS, missing=("a",)) == {"a_w": ("b", 1)}
    assert aims(body, constants, inputs=TOKENS, missing=("a", "b")) == {"a_w": None}


def test_a_value_with_two_readers_is_the_last() -> None:
    body = "a = MatMul(x, a_w) b = Add(a, b_b) r = Relu(b) t = Add(b, x) y = Add(r, t)"
    assert aims(body, {"a_w": (6, 6), "b_b": (6,)}, inputs=TOKENS) == {"a_w": ("b", 1)}


def test_attention_projections_aim_at_their_own_results() -> None:
    body = """
        q = MatMul(x, q_w) k = MatMul(x, k_w) v = MatMul(x, v_w)
        t = Transpose<perm = [0, 2, 1]>(k) s = MatMul(q, t) p = Softmax(s) o = MatMul(p, v)
        z = MatMul(o, o_w) y = Add(z, x)
    """
    found = aims(body, dict.fromkeys(("q_w", "k_w", "v_w", "o_w"), (6, 6)), inputs=TOKENS)
    assert found == {"q_w": ("q", 1), "k_w": ("k", 1), "v_w": ("v", 1), "o_w": ("y", 2)}


def test_a_result_that_is_spread_over_a_larger_one_is_no_target() -> None:
    body = "a = MatMul(x, a_w) m = ReduceMean<axes = [1], keepdims = 1>(a) b = MatMul(m, b_w) y = Add(b, x)"
    found = aims(body, {"a_w": (6, 6), "b_w": (6, 6)}, inputs=TOKENS)
    assert found["b_w"] == ("b", 2)


def check_back(body: str, constants: dict[str, Constant], value: str, **options: object) -> None:
    """Change the weights; the change at the target, brought back, is that of the layer's own result."""
    model, found, shapes = targets(body, constants, **options)  # type: ignore[arg-type]
    linear, target = found["a_w"]
    assert target is not None
    assert target.value == value
    own = str(linear.node.outputs[0].name)
    weight = model.graph.initializers["a_w"]
    assert weight.const_value is not None
    assert model.graph.inputs[0].shape is not None
    sizes = [s if isinstance(s, int) else 2 for s in model.graph.inputs[0].shape]
    feed = {"x": np.random.default_rng(1).standard_normal(sizes).astype(np.float32)}
    names = [name for name in dict.fromkeys((own, value)) if name != "y"]
    before = open_session(model, extra_outputs=names, optimize="none").run(feed)
    changed = weight.const_value.numpy() * np.float32(1.5)
    weight.const_value = ir.tensor(changed, name="a_w")
    after = open_session(model, extra_outputs=names, optimize="none").run(feed)
    back = target.back(after[value] - before[value], shapes)
    np.testing.assert_allclose(back, after[own] - before[own], rtol=1e-3, atol=1e-4)
    factors = gains(linear, target, shapes)
    assert factors is not None
    at_target = np.linalg.norm(after[value] - before[value])
    rows = linear.targets(after[own] - before[own]) * factors[:, None]
    np.testing.assert_allclose(np.linalg.norm(rows), at_target, rtol=1e-3)


def test_batch_normalization_between_a_layer_and_a_sum() -> None:
    body = "a = Conv<pads=[1,1,1,1]>(x, a_w) n = BatchNormalization(a, g, h, m, v) y = Add(n, x)"
    vector = np.linspace(0.5, 2, 3).astype(np.float32)
    check_back(body, {"a_w": (3, 3, 3, 3), "g": -vector, "h": vector, "m": vector, "v": vector}, "y")


def test_reshapes_turns_and_scales_between_a_layer_and_a_sum() -> None:
    body = """
        f = Reshape(x, flat) a = Gemm(f, a_w, a_b) r = Reshape(a, back) t = Transpose<perm = [1, 0, 2]>(r)
        u = Transpose<perm = [1, 0, 2]>(t) s = Mul(u, g) y = Sub(x, s)
    """
    gain = np.array([0.5, 2, 3, 1, 1, 4], np.float32)
    constants: dict[str, Constant] = {
        "flat": [-1, 6], "back": [2, 4, 6], "a_w": (6, 6), "a_b": (6,), "g": gain
    }  # fmt: skip
    check_back(body, constants, "y", inputs="float[2,4,6] x")


def test_a_turn_that_is_not_its_own_inverse() -> None:
    body = "a = MatMul(x, a_w) t = Transpose<perm = [1, 2, 0]>(a) y = Add(t, z)"
    constants: dict[str, Constant] = {"a_w": (6, 6), "z": (4, 6, 2)}
    sizes = "float[2,4,6] x"
    check_back(body, constants, "y", inputs=sizes)


def test_a_scale_that_differs_from_place_to_place_is_no_way() -> None:
    body = "a = MatMul(x, a_w) s = Mul(a, g) y = Add(s, x)"
    gain = np.arange(1, 5, dtype=np.float32).reshape(4, 1)
    assert aims(body, {"a_w": (6, 6), "g": gain}, inputs=TOKENS) == {"a_w": ("a", 1)}


def test_a_channel_that_is_scaled_away_asks_for_no_change() -> None:
    body = "a = MatMul(x, a_w) s = Mul(a, g) y = Add(s, x)"
    gain = np.array([1, 0, 2, 1, 1, 1e-9], np.float32)
    _, found, shapes = targets(body, {"a_w": (6, 6), "g": gain}, inputs=TOKENS)
    _, target = found["a_w"]
    assert target is not None
    back = target.back(np.ones((2, 4, 6), np.float32), shapes)
    np.testing.assert_allclose(back[0, 0], [1, 0, 0.5, 1, 1, 0])
