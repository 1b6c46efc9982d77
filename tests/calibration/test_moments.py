"""Moments of what nodes take in: those of float64, each node once, within the limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper

from onnxprune.calibration import activations, moments
from onnxprune.calibration.activations import each_batch
from onnxprune.calibration.moments import Moments, collect_moments
from onnxprune.calibration.tapping import Footprint
from onnxprune.data import Dataset
from onnxprune.errors import DataError, LimitMissed, UsageError
from onnxprune.ops.linear import Linear, find_linear
from onnxprune.runtime import Session

RANDOM = np.random.default_rng(3)


def images(count: int = 20, *shape: int) -> Dataset:
    x = np.random.default_rng(0).standard_normal((count, *(shape or (3, 8, 8)))).astype(np.float32)
    return Dataset.from_arrays({"x": x}, "calib.npz")


def collected(model: ir.Model, data: Dataset, **options: Any) -> tuple[list[Linear], list[Moments]]:
    linears, _ = find_linear(model)
    options.setdefault("max_rows", None)
    found = dict(collect_moments(model, linears, data, **options))
    assert sorted(found) == list(range(len(linears)))
    return linears, [found[number] for number in range(len(linears))]


def expected(model: ir.Model, linears: Sequence[Linear], data: Dataset) -> list[Moments]:
    """In float64, from the rows of all samples at once."""
    values = [
        tapped.values[0]
        for tapped in each_batch(model, [(str(n.x.name),) for n in linears], data, batch=len(data))
    ]
    found = []
    for linear, x in zip(linears, values, strict=True):
        rows = linear.rows(x).astype(np.float64)
        found.append(Moments(rows.swapaxes(1, 2) @ rows, rows.sum(axis=1), rows.shape[1]))
    return found


def check(found: Sequence[Moments], wanted: Sequence[Moments], tolerance: float = 1e-5) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.second.dtype == a.first.dtype == np.float64
        assert a.count == b.count
        scale = np.sqrt(np.einsum("gii->gi", b.second))
        assert (np.abs(a.second - b.second) <= tolerance * scale[:, :, None] * scale[:, None] + 1e-30).all()
        np.testing.assert_array_equal(a.second, a.second.swapaxes(1, 2))
        assert (np.abs(a.first - b.first) <= tolerance * np.sqrt(b.count) * scale + 1e-30).all()


MODELS = {
    "residual": (small_models.residual_net, (3, 8, 8)),
    "depthwise": (small_models.depthwise_net, (3, 8, 8)),
    "concat": (small_models.concat_net, (3, 8, 8)),
    "mlp": (small_models.mlp, (16,)),
    "attention": (small_models.attention, (6, 32)),
}


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("batch", [1, 7, 32])
def test_the_moments_are_those_of_all_rows_in_float64(name: str, batch: int) -> None:
    build, shape = MODELS[name]
    model, data = ir.from_proto(build()), images(20, *shape)
    linears, found = collected(model, data, batch=batch)
    assert len(linears) > 2
    check(found, expected(model, linears, data))


def one_product(inputs: int = 24, x_shape: tuple[Any, ...] = ("n", None)) -> ir.Model:
    shape = [size if size is not None else inputs for size in x_shape]
    weight = RANDOM.standard_normal((inputs, 2)).astype(np.float32)
    return ir.from_proto(
        helper.make_model(
            helper.make_graph(
                [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")],
                "g",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
                [numpy_helper.from_array(weight, "w")],
            ),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
    )


@pytest.mark.parametrize("piece_rows", [64, moments._PIECE_ROWS])
def test_numbers_of_one_sign_err_by_less_than_a_hundred_thousandth(
    monkeypatch: pytest.MonkeyPatch, piece_rows: int
) -> None:
    monkeypatch.setattr(moments, "_PIECE_ROWS", piece_rows)
    x = (1000 + np.abs(RANDOM.standard_normal((60_000, 24)))).astype(np.float32)
    data, model = Dataset.from_arrays({"x": x}), one_product()
    for batch in (500, 60_000):
        linears, found = collected(model, data, batch=batch)
        wanted = expected(model, linears, data)
        check(found, wanted)
        # all of them in one sum of float32 would err by more
        np.testing.assert_allclose(found[0].second, wanted[0].second, rtol=5e-7)


# --- the limit ----------------------------------------------------------------------------------------------


class Weighed:
    """Runs of a model, and what left them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        run = Session.run_in_place

        def weighed(session: Session, feeds: Any) -> dict[str, np.ndarray]:
            results = run(session, feeds)
            self.sizes.append(sum(array.nbytes for array in results.values()))
            return results

        monkeypatch.setattr(Session, "run_in_place", weighed)


@pytest.mark.parametrize(("limit_bytes", "passes"), [(1 << 24, 1), (1 << 20, 2), (560_000, 4)])
def test_a_limit_makes_more_passes(monkeypatch: pytest.MonkeyPatch, limit_bytes: int, passes: int) -> None:
    model, data = ir.from_proto(small_models.residual_net()), images(20)
    _, wanted = collected(model, data, batch=10)
    weighed = Weighed(monkeypatch)
    _, found = collected(model, data, limit_bytes=limit_bytes, batch=10)
    assert len(weighed.sizes) == 2 * passes
    assert max(weighed.sizes) <= limit_bytes
    check(found, wanted)


def test_a_limit_makes_batches_and_pieces_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = ir.from_proto(small_models.residual_net()), images(20)
    first = find_linear(model)[0][:1]  # 27 inputs: 8964 bytes of sums; a sample takes 768, unfolded 6912
    pieces = []
    add = moments.Sums._add_rows

    def watched(sums: moments.Sums, rows: np.ndarray) -> None:
        pieces.append(rows.nbytes)
        add(sums, rows)

    monkeypatch.setattr(moments.Sums, "_add_rows", watched)
    ((_, wanted),) = collect_moments(model, first, data)
    weighed = Weighed(monkeypatch)
    pieces.clear()
    monkeypatch.setattr(Footprint, "alive", lambda *_: 0)
    ((_, found),) = collect_moments(model, first, data, limit_bytes=16_000)
    check([found], [wanted])
    assert max(weighed.sizes) <= 16_000 - 9_964
    assert len(weighed.sizes) == 3
    assert max(pieces) <= 1000


def test_what_no_pass_has_room_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Footprint, "alive", lambda *_: 0)
    model, data = ir.from_proto(small_models.residual_net()), images(20)
    linears, _ = find_linear(model)
    with pytest.raises(
        LimitMissed, match=r"sums over 27 inputs, whose moments take 8964 bytes, .* to 17928$"
    ):
        collect_moments(model, linears[:1], data, limit_bytes=9000)
    with pytest.raises(
        LimitMissed, match=r"'x' takes 768 bytes in a batch of 1, beside 9564 .* raise it to 20664$"
    ):
        list(collect_moments(model, linears[:1], data, limit_bytes=9600))
    list(collect_moments(model, linears[:1], data, limit_bytes=10_500))


def test_progress_rises_to_one() -> None:
    model, data = ir.from_proto(small_models.residual_net()), images(20)
    shares: list[float] = []
    collected(model, data, limit_bytes=560_000, batch=10, progress=shares.append)
    assert len(shares) == 8
    assert shares == sorted(shares)
    assert shares[-1] == 1


# --- which rows ---------------------------------------------------------------------------------------------


def test_nodes_that_take_the_same_rows_share_one_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = ir.from_proto(small_models.attention()), images(20, 6, 32)
    added = []
    add = moments.Sums.add

    def watched(sums: moments.Sums, *given: Any) -> None:
        added.append(sums.linear.node.name)
        add(sums, *given)

    monkeypatch.setattr(moments.Sums, "add", watched)
    linears, found = collected(model, data)
    assert len(added) < len(linears)
    by_key: dict[Any, list[Moments]] = {}
    for linear, each in zip(linears, found, strict=True):
        by_key.setdefault(linear.row_key, []).append(each)
    assert max(map(len, by_key.values())) == 3
    for same in by_key.values():
        assert all(each is same[0] for each in same)
    with pytest.raises(ValueError, match="read-only"):
        found[0].second += 1


def numbered(samples: int, places: int) -> Dataset:
    """Sample s, place p: one-hot of s, then p."""
    x = np.zeros((samples, places, samples + 1), np.float32)
    x[np.arange(samples), :, np.arange(samples)] = 1
    x[..., -1] = np.arange(places)
    return Dataset.from_arrays({"x": x})


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_drawn_rows_are_spread_evenly_over_samples_and_places(batch: int) -> None:
    model = one_product(11, ("n", 50, None))
    data = numbered(10, 50)
    _, (found,) = collected(model, data, max_rows=100, batch=batch)
    assert found.count == 100
    by_sample = np.diag(found.second[0])[:-1]
    assert set(by_sample.tolist()) <= {9, 10, 11}
    _, (again,) = collected(model, data, max_rows=100, batch=batch)
    np.testing.assert_array_equal(found.second, again.second)
    seeds = [collected(model, data, max_rows=100, batch=batch, seed=seed)[1][0] for seed in range(20)]
    assert len({float(each.first[0, -1]) for each in seeds}) > 10
    means = [each.first[0, -1] / each.count for each in seeds]
    assert abs(np.mean(means) - 24.5) < 0.2  # of all places; each mean errs by about 0.15


def test_with_room_for_all_rows_all_are_taken_once() -> None:
    data = numbered(10, 50)
    model = one_product(11, ("n", 50, None))
    for limit in (500, 501, 10**9):
        linears, found = collected(model, data, max_rows=limit, batch=3)
        check(found, expected(model, linears, data))


def test_a_fixed_batch_counts_whole_batches_alone() -> None:
    model, data = one_product(24, (8, None)), images(20, 24)
    _, (found,) = collected(model, data)
    assert found.count == 16
    check([found], expected(one_product(24), find_linear(one_product(24))[0], images_cut(data, 16)))
    _, (drawn,) = collected(model, data, max_rows=10)
    assert drawn.count == 10


def images_cut(data: Dataset, count: int) -> Dataset:
    return Dataset.from_arrays({name: array[:count] for name, array in data.arrays.items()})


# --- refusals -----------------------------------------------------------------------------------------------


def dividing() -> ir.Model:
    """Return y = (1 / x) w, infinite where x is 0."""
    weight = RANDOM.standard_normal((24, 2)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Reciprocal", ["x"], ["r"], name="r"),
            helper.make_node("MatMul", ["r", "w"], ["y"], name="late"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    proto: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    return ir.from_proto(proto)


@pytest.mark.parametrize("bad", [0.0, 1e-30])
@pytest.mark.parametrize("max_rows", [None, 3])
def test_what_is_not_finite_names_the_node(bad: float, max_rows: int | None) -> None:
    x = np.ones((20, 24), np.float32)
    x[11] = bad
    data = Dataset.from_arrays({"x": x}, "calib.npz")
    if bad and max_rows:  # its square is infinite, where it is drawn
        x[:] = bad
        data = Dataset.from_arrays({"x": x}, "calib.npz")
    with pytest.raises(DataError, match=r"^calib.npz: on this data the input of 'late' holds NaN, infinity"):
        collected(dividing(), data, max_rows=max_rows)


def test_options_that_make_no_sense() -> None:
    model = one_product()
    linears, _ = find_linear(model)
    with pytest.raises(UsageError, match="max_rows must be positive, not 0"):
        collect_moments(model, linears, images(4, 24), max_rows=0)
    with pytest.raises(UsageError, match="batch must be positive"):
        list(collect_moments(model, linears, images(4, 24), batch=0))
    assert list(collect_moments(model, [], images(4, 24))) == []


def test_the_default_limit_is_that_of_activations() -> None:
    assert moments.LIMIT_BYTES == activations.LIMIT_BYTES
