"""Where a graph is cut into stretches, and that running them one by one computes what the whole computes."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph
from generated import generated_model
from llm.decoder import SMALL, write_decoder, write_samples

import onnxprune
from onnxprune.calibration import relay as relay_module
from onnxprune.calibration import stretches
from onnxprune.calibration.activations import each_batch, mean_squares
from onnxprune.calibration.moments import collect_moments
from onnxprune.calibration.part import Tap, part_of
from onnxprune.calibration.relay import relay
from onnxprune.calibration.stretches import cut_into_stretches, stored_bytes
from onnxprune.data import Dataset
from onnxprune.errors import LimitMissed, OutputError, RuntimeFailure, UsageError
from onnxprune.feeds import random_feeds
from onnxprune.model.shapes import input_shapes
from onnxprune.ops.linear import find_linear
from onnxprune.runtime import Session, open_session
from onnxprune.spill import Spill

LIMIT_BYTES = 8 << 20


def values_of(model: ir.Model) -> list[str]:
    return [str(output.name) for node in model.graph for output in node.outputs]


# --- where it is cut ----------------------------------------------------------------------------------------


def chain(layers: int = 6) -> ir.Model:
    """Residual layers of two matrices of 4 KiB each: two values pass between them, one behind them."""
    body, x = "", "x"
    for layer in range(layers):
        y = "y" if layer == layers - 1 else f"x{layer}"
        body += f"a{layer} = MatMul({x}, u{layer}) b{layer} = MatMul(a{layer}, v{layer}) "
        body += f"{y} = Add({x}, b{layer})\n"
        x = y
    random = np.random.default_rng(0)
    constants = {
        f"{name}{layer}": random.standard_normal((32, 32)).astype(np.float32) / 8
        for layer in range(layers)
        for name in "uv"
    }
    return graph(body, inputs="float[N,32] x", outputs="y", constants=constants)


def test_cuts_lie_where_the_fewest_values_pass() -> None:
    model = chain()
    cut = cut_into_stretches(model.graph, [["y"]], weight_bytes=5 * 4096)
    assert [stretch.passed for stretch in cut] == [("x1",), ("x3",), ()]
    assert [stretch.last for stretch in cut] == [(), ("x1",), ("x3",)]
    assert [stretch.bundles for stretch in cut] == [(), (), (0,)]
    assert stored_bytes(model) == 12 * 4096


def test_a_node_that_needs_more_stands_alone() -> None:
    cut = cut_into_stretches(chain(2).graph, [["y"]], weight_bytes=1)
    assert [stretch.made for stretch in cut] == [("a0",), ("b0", "x0"), ("a1",), ("b1", "y")]


def test_what_is_held_ends_a_stretch() -> None:
    bundles = [["x"], ["a0"], ["x0"], ["a1"]]
    cut = cut_into_stretches(
        chain(2).graph, bundles, weight_bytes=1 << 30, held_bytes=[1, 2, 1, 3], held_limit_bytes=3
    )
    assert [stretch.bundles for stretch in cut] == [(0, 1), (2,), (3,)]


def test_a_bundle_is_complete_with_its_last_value() -> None:
    cut = cut_into_stretches(chain(4).graph, [["x2", "a0"]], weight_bytes=2 * 4096)
    assert [stretch.bundles for stretch in cut][-2:] == [(), (0,)]
    assert "a0" in cut[0].passed
    assert "a0" in cut[-1].last


def test_nothing_behind_what_is_wanted() -> None:
    cut = cut_into_stretches(chain(6).graph, [["a1"], ["x"]], weight_bytes=2 * 4096)
    assert {name for stretch in cut for name in stretch.made} == {"a0", "b0", "x0", "a1"}
    assert cut_into_stretches(chain().graph, [["x"]], weight_bytes=1)[0].bundles == (0,)


def test_what_depends_on_stored_tensors_alone_belongs_to_who_reads_it() -> None:
    """A transposed weight at the front would pass every cut."""
    model = graph(
        "t = Transpose<perm = [1, 0]>(w) a = MatMul(x, v) b = Relu(a) c = MatMul(b, v2) y = MatMul(c, t)",
        inputs="float[N,32] x",
        constants={name: np.ones((32, 32), np.float32) for name in ("w", "v", "v2")},
    )
    cut = cut_into_stretches(model.graph, [["y"]], weight_bytes=4096)
    assert "t" not in {name for stretch in cut for name in stretch.passed}
    assert len(cut) == 3


def test_draws_are_made_once() -> None:
    model = graph(
        "n = RandomNormalLike(x) a = MatMul(x, v) b = Add(a, n) c = MatMul(b, w) y = Add(c, n)",
        inputs="float[N,32] x",
        constants={name: np.ones((32, 32), np.float32) for name in ("v", "w")},
    )
    cut = cut_into_stretches(model.graph, [["y"]], weight_bytes=4096)
    assert ["n" in stretch.passed for stretch in cut] == [True, False]


def test_sequences_are_not_cut_through() -> None:
    model = graph(
        "a = MatMul(x, v) s = SplitToSequence<axis = 1>(a, four) b = MatMul(a, w) e = SequenceAt(s, zero) "
        "y = MatMul(e, u)",
        inputs="float[N,32] x",
        constants={
            "v": np.ones((32, 32), np.float32), "w": np.ones((32, 32), np.float32),
            "u": np.ones((4, 4), np.float32), "four": np.array(4), "zero": np.array(0),
        },
    )  # fmt: skip
    cut = cut_into_stretches(model.graph, [["y"], ["b"]], weight_bytes=1)
    assert "s" not in {name for stretch in cut for name in stretch.passed}


# --- that it computes the same ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spill_bytes", [0, 1 << 30])
def test_every_value_is_that_of_the_whole(seed: int, spill_bytes: int) -> None:
    model = ir.from_proto(generated_model(seed, 6))
    names = values_of(model)
    shapes = input_shapes(model)
    feeds = [random_feeds(model, shapes, number) for number in range(3)]
    whole = open_session(part_of(model, {Tap(name): f"all_{name}" for name in names}, {}), optimize="none")
    cut = cut_into_stretches(model.graph, [[name] for name in names], weight_bytes=1)
    assert len(cut) > 1
    shares = [[[Tap(names[number])] for number in stretch.bundles] for stretch in cut]
    seen = set()
    for turn in relay(
        model, cut, shares, feeds.__getitem__, 3, spill_bytes=spill_bytes, threads=1, form="written"
    ):
        assert not isinstance(turn.found, RuntimeFailure)
        expected = whole.run(feeds[turn.batch])
        for tap, array in turn.found.items():
            np.testing.assert_array_equal(array, expected[f"all_{tap.name}"])
            seen.add((tap.name, turn.batch))
    assert seen == set(itertools.product(names, range(3)))


def test_a_batch_that_fails_leaves_the_others_alone() -> None:
    model = chain(3)
    cut = cut_into_stretches(model.graph, [["y"]], weight_bytes=2 * 4096)
    feeds = [{"x": np.ones((2, size), np.float32)} for size in (32, 31, 32)]
    shares = [[[Tap("y")] for _ in stretch.bundles] for stretch in cut]
    found = [
        turn
        for turn in relay(model, cut, shares, feeds.__getitem__, 3, spill_bytes=0, threads=1)
        if turn.stretch == len(cut) - 1
    ]
    assert [isinstance(turn.found, RuntimeFailure) for turn in found] == [False, True, False]


@pytest.fixture(scope="module", params=["plain", "contrib"])
def decoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ir.Model, Dataset]:
    folder = tmp_path_factory.mktemp(request.param)
    path = write_decoder(folder, SMALL, form=request.param)
    samples = write_samples(folder / "calib.npz", SMALL, 6, 12, form=request.param)
    return onnxprune.load(path), onnxprune.load_data(samples)


@pytest.fixture
def spills(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Spill]]:
    """Every model is large; what was spilled is told, and nothing may be left of it."""
    made: list[Spill] = []
    init = Spill.__init__

    def noted(spill: Spill, limit_bytes: int) -> None:
        init(spill, limit_bytes)
        made.append(spill)

    monkeypatch.setattr(Spill, "__init__", noted)
    monkeypatch.setattr(stretches, "WHOLE_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield made
    assert not list(tmp_path.iterdir())
    assert all(spill._file is None for spill in made)


def moments(model: ir.Model, data: Dataset, **options: Any) -> list[tuple[np.ndarray, np.ndarray, int]]:
    linears, _ = find_linear(model)
    found = dict(collect_moments(model, linears, data, batch=2, **options))
    return [
        (found[number].second, found[number].first, found[number].count) for number in range(len(linears))
    ]


def test_moments_of_a_decoder_are_those_of_the_whole(
    decoder: tuple[ir.Model, Dataset], request: pytest.FixtureRequest
) -> None:
    model, data = decoder
    expected = moments(model, data)
    made = request.getfixturevalue("spills")
    opened = Opened(request.getfixturevalue("monkeypatch"))
    found = moments(model, data, limit_bytes=LIMIT_BYTES)
    assert len(opened.weight_bytes) > 4
    assert max(opened.weight_bytes) <= LIMIT_BYTES / 4
    assert len(made) == 2  # for sizes, and for all of the data
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine[:2], theirs[:2], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
        assert mine[2] == theirs[2]


class Opened:
    """Notes how much of a model each session holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weight_bytes: list[int] = []

        def noted(model: ir.Model, **options: Any) -> Session:
            self.weight_bytes.append(stored_bytes(model))
            return open_session(model, **options)

        monkeypatch.setattr(relay_module, "open_session", noted)


def test_values_and_mean_squares_are_those_of_the_whole(
    decoder: tuple[ir.Model, Dataset], request: pytest.FixtureRequest
) -> None:
    model, data = decoder
    names = values_of(model)[10 :: len(model.graph) // 8]
    bundles = [names[:2], names[1:4], names[4:]]

    def values() -> list[list[Sequence[np.ndarray]]]:
        found: list[list[Sequence[np.ndarray]]] = [[], [], []]
        for tapped in each_batch(model, bundles, data, batch=4, limit_bytes=LIMIT_BYTES):
            found[tapped.bundle].append([array.copy() for array in tapped.values])
        return found

    floats = [(str(linear.x.name), (0, 1)) for linear in find_linear(model)[0]]
    expected, squares = values(), mean_squares(model, floats, data, limit_bytes=LIMIT_BYTES)
    made = request.getfixturevalue("spills")
    for mine, theirs in zip(values(), expected, strict=True):
        assert len(mine) == len(theirs) == 2
        for one, other in zip(itertools.chain(*mine), itertools.chain(*theirs), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    for one, other in zip(mean_squares(model, floats, data, limit_bytes=LIMIT_BYTES), squares, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert len(made) == 4


def test_progress_rises_to_one(decoder: tuple[ir.Model, Dataset], spills: list[Spill]) -> None:
    told: list[float] = []
    moments(*decoder, limit_bytes=LIMIT_BYTES, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert told[0] < 0.2


def test_what_waits_beyond_its_share_waits_on_disk_and_goes_when_work_fails(
    decoder: tuple[ir.Model, Dataset], spills: list[Spill], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = decoder
    from onnxprune.calibration import activations

    monkeypatch.setattr(activations, "_SPILL_SHARE", 0)
    linears, _ = find_linear(model)
    runs = collect_moments(model, linears, data, batch=2, limit_bytes=LIMIT_BYTES)
    for _ in range(6):
        next(runs)
    assert spills[-1].file_bytes > 0
    runs.close()  # as an error in the caller does


def test_a_full_disk_is_one_line(
    decoder: tuple[ir.Model, Dataset], spills: list[Spill], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputError("temporary files: no room")

    monkeypatch.setattr(Spill, "put", full)
    with pytest.raises(OutputError, match="no room"):
        moments(*decoder, limit_bytes=LIMIT_BYTES)


def test_refusals(decoder: tuple[ir.Model, Dataset], spills: list[Spill]) -> None:
    model, data = decoder
    with pytest.raises(UsageError, match="no value 'nowhere'"):
        each_batch(model, [["nowhere"]], data)
    with pytest.raises(LimitMissed, match="raise it to"):
        each_batch(model, [["logits"]], data, limit_bytes=20_000)


def test_an_input_and_a_stored_value_can_be_tapped(spills: list[Spill]) -> None:
    model = chain(2)
    data = Dataset.from_arrays({"x": np.ones((4, 32), np.float32)})
    found = {tapped.bundle: tapped.values for tapped in each_batch(model, [["x"], ["y", "x"]], data)}
    np.testing.assert_array_equal(found[0][0], np.ones((4, 32)))
    np.testing.assert_array_equal(found[1][1], np.ones((4, 32)))
