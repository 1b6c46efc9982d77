"""Folders of models: each is pruned, all else is carried along, and what is half done never shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from small_models import frozen_net, mlp, residual_net

import onnxprune
from onnxprune import load_plan, prune_folder, verify
from onnxprune.errors import (
    LimitMissed,
    ModelError,
    NothingToPrune,
    OnnxPruneError,
    OutputError,
    UsageError,
)
from onnxprune.folders import run as folders_run
from onnxprune.model import together


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder as exporters write it: a model with data beside it, one in a folder of its own, and more."""
    folder = tmp_path / "export"
    (folder / "onnx").mkdir(parents=True)
    onnx.save(
        mlp(), folder / "encoder_model.onnx", save_as_external_data=True, location="encoder_model.onnx_data",
        size_threshold=0,
    )  # fmt: skip
    onnx.save(residual_net(), folder / "onnx" / "model.onnx")
    onnx.save(frozen_net(), folder / "frozen.onnx")
    (folder / "config.json").write_text('{"hidden_size": 32}\n')
    (folder / "onnx" / "tokenizer.json").write_bytes(b"\x00\xff")
    return folder


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def decoder(extra: int) -> onnx.ModelProto:
    """A feed-forward layer, whose result goes into a cache, then ``extra`` layers of their own."""
    shared, of_its_own = np.random.default_rng(0), np.random.default_rng(extra)
    weights = {name: shared.standard_normal(shape) for name, shape in (("up", (16, 64)), ("down", (64, 16)))}
    weights |= {f"own{n}": of_its_own.standard_normal((16, 16)) * extra for n in range(extra)}
    own = " ".join(f"s{n + 1} = MatMul(s{n}, own{n})" for n in range(extra))
    body = f"h = MatMul(x, up) r = Relu(h) present_0 = MatMul(r, down) s0 = Relu(present_0) {own}"
    interface = "(float[N,16] x) => (float[N,16] y, float[N,16] present_0)"
    text = f'<ir_version: 8, opset_import: ["": 17]> g {interface} {{{body} y = Relu(s{extra})}}'
    model = parser.parse_model(text)
    model.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()
    )
    return model


def test_models_are_pruned_and_all_else_is_carried_along(export, tmp_path):
    before = {name: (export / name).read_bytes() for name in files_of(export)}
    out = tmp_path / "out"
    report = prune_folder(export, out, amount=0.5, plan_folder=tmp_path / "plans")
    data = {name for name in files_of(out) if name.endswith(".data")}
    assert len(data) == 1
    assert files_of(out) - data == files_of(export) - {"encoder_model.onnx_data"}
    for name in ("config.json", "onnx/tokenizer.json", "frozen.onnx"):
        assert (out / name).read_bytes() == before[name]
    for name in ("encoder_model", "onnx/model"):
        plan = load_plan(tmp_path / "plans" / f"{name}.plan")
        assert plan.removed
        assert verify(out / f"{name}.onnx", against=export / f"{name}.onnx", plan=plan).passed
    assert [row["model"] for row in report.sections["models"]] == ["encoder_model.onnx", "onnx/model.onnx"]
    assert all(row["parameters_ratio"] < 0.8 for row in report.sections["models"])
    (frozen,) = (each for each in report.skipped if each.name == "frozen.onnx")
    assert frozen.reason.startswith("copied: nothing to remove")
    assert any(check.name == "onnx/model.onnx: interface" for check in report.checks)
    assert {name: (export / name).read_bytes() for name in files_of(export)} == before
    assert not list(tmp_path.glob(".*"))


def test_only_some_models(export, tmp_path):
    report = prune_folder(export, tmp_path / "out", amount=0.5, only=["onnx/*"])
    assert [row["model"] for row in report.sections["models"]] == ["onnx/model.onnx"]
    for name in ("encoder_model.onnx", "encoder_model.onnx_data"):  # its data with it
        assert (tmp_path / "out" / name).read_bytes() == (export / name).read_bytes()
    with pytest.raises(UsageError, match="fits no model"):
        prune_folder(export, tmp_path / "other", amount=0.5, only=["decoder*"])


def test_options_for_one_of_the_models(export, tmp_path):
    rows = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=rows)
    data = {"encoder_model.onnx": tmp_path / "rows.npz"}
    report = prune_folder(
        export, tmp_path / "out", amount=0.5, data=data, input_shapes={"x": [4, 16]}, only=["encoder*"]
    )
    assert len(report.sections["models"]) == 1
    with pytest.raises(UsageError, match=r"'encoder.onnx', which is no model"):
        prune_folder(export, tmp_path / "other", amount=0.5, data={"encoder.onnx": "random"})
    with pytest.raises(UsageError, match="'z', which is no input of any model"):
        prune_folder(export, tmp_path / "other", amount=0.5, input_shapes={"z": [1]})
    with pytest.raises(UsageError, match="ammount"):
        prune_folder(export, tmp_path / "other", ammount=0.5)


def test_nothing_in_any_model(tmp_path):
    (tmp_path / "export").mkdir()
    onnx.save(frozen_net(), tmp_path / "export" / "model.onnx")
    with pytest.raises(NothingToPrune, match=r"1 models .model.onnx: ") as error:
        prune_folder(tmp_path / "export", tmp_path / "out", amount=0.5)
    assert all(reason.startswith("model.onnx: ") for reason in error.value.reasons)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target_macs": 0.0001}, LimitMissed, "encoder_model.onnx: "),
        ({"amount": 0.5, "data": "missing.npz"}, OnnxPruneError, "missing.npz"),
        ({"amount": 1.5}, UsageError, "1.5"),
    ],
)
def test_what_fails_leaves_nothing_behind(export, tmp_path, options, error, message):
    before = files_of(tmp_path)
    with pytest.raises(error, match=message):
        prune_folder(export, tmp_path / "out", plan_folder=tmp_path / "plans", **options)
    assert files_of(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_a_failure_at_the_very_end_leaves_nothing_behind(export, tmp_path, monkeypatch):
    before = files_of(tmp_path)
    monkeypatch.setattr(folders_run, "_copy", lambda *_: (_ for _ in ()).throw(OutputError("disk full")))
    with pytest.raises(OutputError, match="disk full"):
        prune_folder(export, tmp_path / "out", amount=0.5, plan_folder=tmp_path / "plans")
    assert files_of(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_the_output_shows_when_all_of_it_is_there(export, tmp_path):
    seen = []
    prune_folder(
        export, tmp_path / "out", amount=0.5, told=lambda _: seen.append((tmp_path / "out").exists())
    )
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("place", ["export", "export/out", ".", "config"])
def test_outputs_that_are_refused(export, tmp_path, place):
    (tmp_path / "config").mkdir()
    with pytest.raises(OutputError):
        prune_folder(export, tmp_path / place, amount=0.5)


def test_folders_that_are_refused(export, tmp_path):
    with pytest.raises(ModelError, match="is no folder"):
        prune_folder(tmp_path / "missing", tmp_path / "out", amount=0.5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no \.onnx"):
        prune_folder(tmp_path / "empty", tmp_path / "out", amount=0.5)
    (tmp_path / "secret").write_text("secret")
    (export / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="leads to a folder or out of"):
        prune_folder(export, tmp_path / "out", amount=0.5)
    (export / "vocab.txt").unlink()
    (export / "vocab.txt").symlink_to(export / "config.json")
    prune_folder(export, tmp_path / "out", amount=0.5)
    assert (tmp_path / "out" / "vocab.txt").read_text() == (export / "config.json").read_text()


@pytest.fixture
def decoders(tmp_path: Path) -> Path:
    """The same weights twice, with layers of their own beside them."""
    folder = tmp_path / "decoders"
    folder.mkdir()
    onnx.save(decoder(1), folder / "decoder_model.onnx")
    onnx.save(decoder(9), folder / "decoder_with_past_model.onnx")
    return folder


def test_decoders_that_share_a_cache_lose_the_same(decoders, tmp_path):
    prune_folder(decoders, tmp_path / "out", amount=0.5)
    up = [
        numpy_helper.to_array(weight)
        for name in ("decoder_model.onnx", "decoder_with_past_model.onnx")
        for weight in onnx.load(tmp_path / "out" / name).graph.initializer
        if weight.name == "up"
    ]
    np.testing.assert_array_equal(*up)
    assert up[0].shape == (16, 32)


@pytest.mark.parametrize(
    "options",
    [{"target_macs": 0.8, "align": 1}, {"pattern": "unstructured", "amount": 0.5, "scope": "global"}],
)
def test_decoders_that_would_differ_are_refused(decoders, tmp_path, options):
    with pytest.raises(UsageError, match=r"share a cache and the weight '(up|down)'"):
        prune_folder(decoders, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_decoder_that_is_left_whole_counts(decoders, tmp_path):
    onnx.save(decoder(1), decoders / "decoder_model.onnx")
    with pytest.raises(UsageError, match="share a cache"):
        prune_folder(decoders, tmp_path / "out", amount=0.5, only=["decoder_model.onnx"])


def test_models_without_a_cache_may_differ(decoders, tmp_path):
    for path in decoders.iterdir():
        model = onnx.load(path)
        del model.graph.output[1]
        onnx.save(model, path)
    prune_folder(decoders, tmp_path / "out", target_macs=0.8, align=1)


def test_stale_folders_are_removed(export, tmp_path, monkeypatch):
    stale = tmp_path / ".out.4194303.01234567.onnxprune-tmp"
    stale.mkdir()
    (stale / "model.onnx").write_bytes(b"half")
    with together.new_folder(tmp_path / "out") as folder:
        assert not stale.exists()
        (folder / "a").write_bytes(b"a")
    assert files_of(tmp_path / "out") == {"a"}


def test_it_is_public():
    assert onnxprune.prune_folder is prune_folder
