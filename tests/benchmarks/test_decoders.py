"""Small decoders of the kind that benchmarks/llm writes: heads go in groups, caches follow, zeros hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from llm import decoder as decoder_module
from llm.decoder import SMALL, Shape, write_decoder, write_samples

import onnxprune
from onnxprune import prove
from onnxprune.analyze import analyze
from onnxprune.calibration import activations, stretches
from onnxprune.calibration.activations import as_fed
from onnxprune.data import Dataset
from onnxprune.model.float32 import in_float32
from onnxprune.planning import masks_on_data
from onnxprune.runtime import open_session
from onnxprune.types import Mask

TINY = dataclasses.replace(SMALL, width=128, places=16, hidden=192, vocabulary=96)
UNTIED = dataclasses.replace(TINY, tied=False)
FORMS = ["plain", "contrib"]


def decoder(
    folder: Path, shape: Shape = TINY, *, form: str = "plain", half: bool = False
) -> tuple[Path, Dataset]:
    path = write_decoder(folder, shape, form=form, half=half)
    data = write_samples(folder / "calib.npz", shape, 24, 12, form=form, half=half)
    return path, onnxprune.load_data(data)


def array_of(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def test_both_forms_compute_the_same(tmp_path: Path) -> None:
    outputs = []
    for form in FORMS:
        path, data = decoder(tmp_path / form, form=form)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, dict(data.arrays))[0])
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)
    assert 0.5 < outputs[0].std() < 10


def test_parameters_are_counted(tmp_path: Path) -> None:
    for shape in (TINY, UNTIED):
        path = write_decoder(tmp_path, shape)
        weights = onnx.load(path).graph.initializer
        tables = 2 * shape.positions * shape.places
        floats = sum(
            int(np.prod(w.dims)) for w in weights if w.data_type == 1 and len(w.dims) and np.prod(w.dims) > 1
        )
        assert floats - tables == shape.parameters()
    assert 1.23e9 < Shape().parameters() < 1.24e9


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_heads_go_with_their_keys_and_hidden_units(tmp_path: Path, form: str, half: bool) -> None:
    """The proof of the cut runs inside; what is left is a smaller decoder of the same kind."""
    path, _ = decoder(tmp_path, form=form, half=half)
    result = onnxprune.prune(onnxprune.load(path), amount=0.5, align=1)
    report = onnxprune.save_pruned(result, tmp_path / "out.onnx", against=path)
    assert all(check.passed for check in report.checks)
    small = onnxprune.load(tmp_path / "out.onnx")
    for layer in range(TINY.layers):
        q, k, v, o, gate, down = (
            array_of(small, f"layers.{layer}.{name}").shape for name in ("q", "k", "v", "o", "gate", "down")
        )
        assert q[1] == o[0]
        assert k == v
        assert q[1] % k[1] == 0  # every key head serves as many queries
        assert k[1] % TINY.places == 0
        assert q[1] < TINY.heads * TINY.places
        assert gate[1] == down[0] == TINY.hidden // 2
    for table in ("cosine", "sine") if form == "plain" else ("cos_cache", "sin_cache"):
        np.testing.assert_array_equal(array_of(small, table), array_of(onnxprune.load(path), table))


@pytest.mark.parametrize("form", FORMS)
def test_caches_keep_their_shape_or_follow(tmp_path: Path, form: str) -> None:
    path = write_decoder(tmp_path, TINY, form=form, cache=True)
    given = write_samples(tmp_path / "c.npz", TINY, 1, 1, form=form, past=5)
    sizes = {name: array.shape for name, array in np.load(given).items()}
    result = onnxprune.prune(onnxprune.load(path), amount=0.5, align=1, input_shapes=sizes)
    onnxprune.save_pruned(result, tmp_path / "out.onnx", against=path)
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    keys = {each.name: each.shape[1] for each in session.get_inputs() if each.name.startswith("past")}
    feeds = dict(np.load(given))
    for name, count in keys.items():
        feeds[name] = feeds[name][:, :count]
    names = [each.name for each in session.get_outputs()]
    found = dict(zip(names, session.run(None, feeds), strict=True))
    assert found["logits"].shape == (1, 1, TINY.vocabulary)
    for name, count in keys.items():
        assert found[name.replace("past", "present")].shape == (1, count, 6, TINY.places)


@pytest.mark.parametrize("form", FORMS)
def test_layers_go(tmp_path: Path, form: str) -> None:
    path, data = decoder(tmp_path, form=form)
    result = onnxprune.prune(onnxprune.load(path), pattern="layers", amount=0.5, data=data, batch=2)
    report = onnxprune.save_pruned(result, tmp_path / "out.onnx", against=path)
    assert all(check.passed for check in report.checks)
    left = {
        name.split(".")[1] for name in onnxprune.load(tmp_path / "out.onnx").graph.initializers if "." in name
    }
    assert left
    assert len(result.plan.removed) == 2


def zeros_in_runs(weights: np.ndarray, mask: Mask) -> None:
    """2:4 along the summed axis, which is the first one of a MatMul's weight."""
    assert np.array_equal(weights != 0, mask.unpack() & (weights != 0))
    runs = weights.reshape(-1, 4, weights.shape[1])
    assert (np.count_nonzero(runs, axis=1) <= 2).all()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_obs_in_stretches_is_that_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, half: bool
) -> None:
    path, data = decoder(tmp_path, form=form, half=half)
    options = {"pattern": "2:4", "score": "obs", "data": data, "batch": 8}
    whole = onnxprune.prune(onnxprune.load(path), **options)
    monkeypatch.setattr(stretches, "WHOLE_BYTES", 0)
    monkeypatch.setattr(activations, "_SPILL_SHARE", 0)
    cut: list[int] = []
    find = stretches.cut_into_stretches

    def counted(*args: object, **named: object) -> list[stretches.Stretch]:
        found = find(*args, **named)  # type: ignore[arg-type]
        cut.append(len(found))
        return found

    monkeypatch.setattr(stretches, "cut_into_stretches", counted)
    result = onnxprune.prune(onnxprune.load(path), memory_limit=1 << 20, **options)
    assert cut == [max(cut)]
    assert cut[0] >= 2
    onnxprune.save_pruned(result, tmp_path / "out.onnx", against=path)
    small = onnxprune.load(tmp_path / "out.onnx")
    assert set(result.plan.masks) == set(whole.plan.masks)
    assert len(result.plan.masks) == 7 * TINY.layers
    for name, mask in result.plan.masks.items():
        zeros_in_runs(array_of(small, name), mask)
        assert (mask.unpack() == whole.plan.masks[name].unpack()).mean() > 0.99
    outputs = [
        open_session(in_float32(model)).run({key: as_fed(array) for key, array in data.arrays.items()})
        for model in (onnxprune.load(path), whole.model, result.model)
    ]
    dense, one, other = (each["logits"] for each in outputs)
    lost = np.square(one - dense).mean()
    assert lost > 0
    assert np.square(one - other).mean() < 0.01 * lost


def test_a_large_model_is_proved_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = decoder(tmp_path, UNTIED)
    model = onnxprune.load(path)
    expected = onnxprune.prune(model, amount=0.4, align=1)
    monkeypatch.setattr(prove, "_LARGE_BYTES", 1 << 18)
    ran: list[int] = []
    in_stretches = prove._in_stretches

    def noted(*args: object) -> list[object]:
        ran.append(1)
        return in_stretches(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(prove, "_in_stretches", noted)
    result = onnxprune.prune(model, amount=0.4, align=1)
    assert len(ran) == 2
    (mine, *_), (theirs, *_) = result.report.checks, expected.report.checks
    assert mine.passed
    assert mine.name == theirs.name
    assert mine.detail.split(" over ")[1] == theirs.detail.split(" over ")[1]


def test_a_wrong_cut_of_a_large_model_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "_LARGE_BYTES", 1 << 18)
    path, _ = decoder(tmp_path, UNTIED)
    model, other = onnxprune.load(path), onnxprune.load(path)
    weight = other.graph.initializers["layers.1.o"]
    changed = array_of(other, "layers.1.o").copy()
    changed[:, 0] += 1
    weight.const_value = ir.tensor(changed, name="layers.1.o")
    shapes: list[Mapping[str, tuple[int, ...]]] = [analyze(model).shapes.input_shapes]
    assert prove.prove(model, model, shapes, tolerance=1e-6).passed
    assert not prove.prove(model, other, shapes, tolerance=1e-4).passed


def test_cut_weights_of_files_are_read_when_they_are_needed(tmp_path: Path) -> None:
    shape = dataclasses.replace(TINY, width=512, hidden=1024)
    path, _ = decoder(tmp_path, shape)
    result = onnxprune.prune(onnxprune.load(path), amount=0.25, align=1)
    tensor = result.model.graph.initializers["layers.0.up"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert tensor.numpy().shape == tuple(tensor.shape.numpy()) == (512, 768)


def test_weights_that_are_stored_alike_are_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials took longer than OBS itself did on a billion parameters."""
    path, data = decoder(tmp_path)
    tried: list[object] = []
    trial = masks_on_data._fits_in_a_trial

    def noted(linear: object, pattern: object) -> bool:
        tried.append(linear)
        return trial(linear, pattern)  # type: ignore[arg-type]

    monkeypatch.setattr(masks_on_data, "_fits_in_a_trial", noted)
    plan = onnxprune.plan(onnxprune.load(path), pattern="2:4", score="wanda", data=data)
    assert len(plan.masks) == 14
    assert len(tried) == 4  # q and o, k and v, gate and up, down


@pytest.mark.long
def test_every_command_of_the_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(decoder_module.__file__).parent))  # as where it is started
    from llm import run

    path, _ = decoder(tmp_path)
    places = {"model": path, "data": tmp_path / "calib.npz", "out": tmp_path / "out"}
    places["out"].mkdir()
    found = list(run.rows(list(run.COMMANDS), places))
    assert all("` | 0 | 0." in row for row in found), found
    assert {left.suffix for left in places["out"].iterdir()} == {".log"}
