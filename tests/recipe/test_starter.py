"""Recipes to begin with: they load, say what can be done with this model, and hold whatever it is called."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import attention, concat_net, frozen_net, mlp, residual_net

from onnxprune import compress
from onnxprune.advice.actions import Action
from onnxprune.advice.run import Advice
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.gates.settings import GateSettings
from onnxprune.measure.intervals import Estimate
from onnxprune.recipe.load import load_recipe
from onnxprune.recipe.schema import Prune, Quantize, Recipe
from onnxprune.recipe.starter import starter
from onnxprune.recipe.writing import RecipeText, toml_value
from onnxprune.types import Report

MODELS = {
    "attention": attention,
    "concat": concat_net,
    "frozen": frozen_net,
    "mlp": mlp,
    "residual": residual_net,
}


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def samples(path: Path, *shape: int, labels: bool = True) -> Path:
    random = np.random.default_rng(0)
    arrays = {"x": random.standard_normal((32, *shape)).astype(np.float32)}
    np.savez(path, **arrays, **({"label": random.integers(0, 4, 32)} if labels else {}))
    return path


def loaded(text: str, folder: Path) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path).recipe


def with_alternatives(text: str) -> str:
    """Take the ``#`` away from every table and key that is commented out."""
    return re.sub(r"^# (?=\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)


def action(title: str, ratio: float) -> Action:
    estimate = Estimate(ratio, ratio, ratio, 60)
    return Action(title, None, ratio < 1, estimate, None, None, "low", None, "because")  # type: ignore[arg-type]


def advice(*actions: Action) -> Advice:
    return Advice("Worth it.", actions, (), None, Report("advice"))


@pytest.mark.parametrize("name", MODELS)
def test_a_recipe_for_any_model_loads(name, tmp_path):
    model = saved(MODELS[name](), tmp_path / f"{name}.onnx")
    text = starter(model, folder=tmp_path, time_limit=0)
    recipe = loaded(text, tmp_path)
    assert Path(recipe.model.path) == model
    assert recipe.stage_names[0] == "cleanup"
    assert ("prune" in recipe.stage_names) == (name != "frozen")
    assert Path(recipe.output.model) == tmp_path / f"{name}.small.onnx"
    for line in text.splitlines():  # every key has its comment
        if " = " in line.partition("#")[0]:
            assert "  # " in line or "kind = " in line, line


@pytest.mark.parametrize("name", MODELS)
def test_what_is_commented_out_is_in_the_schema(name, tmp_path):
    model = saved(MODELS[name](), tmp_path / "model.onnx")
    text = with_alternatives(starter(model, folder=tmp_path, time_limit=0))
    text = re.sub(r"^target_latency.*\n", "", text, flags=re.MULTILINE)
    recipe = loaded(text, tmp_path)
    kinds = [stage.kind for stage in recipe.stages]
    assert (kinds[0], kinds[-2:]) == ("cleanup", ["finetune", "quantize"])
    assert kinds.count("prune") >= 2
    assert {"accuracy_drop", "size_ratio", "latency_ratio"} <= set(recipe.gates.asked())


def test_with_data_there_is_repair_and_int8(tmp_path):
    model = saved(mlp(), tmp_path / "mlp.onnx")
    recipe = loaded(starter(model, samples(tmp_path / "c.npz", 16), folder=tmp_path, time_limit=0), tmp_path)
    assert recipe.stage_names == ("cleanup", "prune", "quantize")
    _, cut, fewer_bits = recipe.stages
    assert isinstance(cut, Prune)
    assert (cut.target_macs, cut.recover) == (0.5, "reconstruct")
    assert isinstance(fewer_bits, Quantize)
    assert fewer_bits.form == "int8"
    assert (Path(str(recipe.data.calibration)), recipe.data.metric) == (tmp_path / "c.npz", "top1")


@pytest.mark.parametrize("data", [None, "random:64"])
def test_without_samples_that_mean_something_nothing_rests_on_them(data, tmp_path):
    dense, convolutions = (saved(each(), tmp_path / f"{each.__name__}.onnx") for each in (mlp, residual_net))
    recipe = loaded(starter(dense, data, folder=tmp_path, time_limit=0), tmp_path)
    cut, fewer_bits = recipe.stages[1:]
    assert isinstance(cut, Prune)
    assert isinstance(fewer_bits, Quantize)
    assert (cut.recover, fewer_bits.form, recipe.data.calibration) == ("none", "dynamic", data)
    recipe = loaded(starter(convolutions, data, folder=tmp_path, time_limit=0), tmp_path)
    assert recipe.stage_names == ("cleanup", "prune")


def test_a_target_that_cannot_be_met_is_not_asked_for(tmp_path):
    """Most of this network's work is in a layer whose width is its output's."""
    model = mlp()
    wide = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(wide, "wide"))
    model.graph.node.append(onnx.helper.make_node("Gemm", ["x", "wide"], ["z"], "wide", transB=1))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["n", 300]))
    text = starter(saved(model, tmp_path / "m.onnx"), folder=tmp_path, time_limit=0)
    cut = loaded(text, tmp_path).stages[1]
    assert isinstance(cut, Prune)
    assert 0.5 < cut.target_macs < 1
    assert "Not 0.5: " in text


def test_what_was_measured_decides(tmp_path):
    model = saved(mlp(), tmp_path / "mlp.onnx")
    data = samples(tmp_path / "c.npz", 16)
    slow = advice(action("remove 50% of the channels", 0.6), action("quantize to INT8", 1.94))
    text = starter(model, data, folder=tmp_path, advice=slow)
    recipe = loaded(text, tmp_path)
    assert recipe.stage_names == ("cleanup", "prune")
    assert "INT8 took 1.94 of the time" in text
    assert "- remove 50% of the channels: 0.60; because" in text
    assert recipe.gates.latency_ratio == 0.95
    fast = advice(action("quantize to INT8", 0.5))
    assert "quantize" in loaded(starter(model, data, folder=tmp_path, advice=fast), tmp_path).stage_names
    assert loaded(starter(model, data, folder=tmp_path, advice=advice()), tmp_path).gates.latency_ratio == 1.0


def test_paths_are_those_from_the_recipe(tmp_path):
    for name in ("models", "recipes"):
        (tmp_path / name).mkdir()
    model = saved(mlp(), tmp_path / "models" / "mlp.onnx")
    text = starter(model, samples(tmp_path / "c.npz", 16), folder=tmp_path / "recipes", time_limit=0)
    assert 'path = "../models/mlp.onnx"' in text
    assert 'calibration = "../c.npz"' in text
    assert Path(loaded(text, tmp_path / "recipes").model.path).resolve() == model


@pytest.mark.parametrize(
    "name", ['a"b\\c.onnx', "a\n[gates]\nsize = 1.onnx", "ünï 😀.onnx", "a\x7f\u202eb.onnx", "'#.onnx"]
)
def test_names_are_data(name, tmp_path):
    net = mlp()
    net.graph.input[0].name = net.graph.node[0].input[0] = 'x"\n[gates]\nopset = 1'
    net.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n\nm"
    model = saved(net, tmp_path / name)
    recipe = loaded(starter(model, folder=tmp_path, time_limit=0), tmp_path)
    assert Path(recipe.model.path) == model
    assert recipe.gates == GateSettings(size_ratio=recipe.gates.size_ratio, latency_ratio=1.0)


def test_names_that_no_recipe_can_hold(tmp_path):
    model = saved(mlp(), tmp_path / "${HOME}.onnx")
    with pytest.raises(UsageError, match="environment variable"):
        starter(model, folder=tmp_path, time_limit=0)
    with pytest.raises(UsageError, match="no Unicode"):
        toml_value("a\udcff")


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(ModelError):
        starter(tmp_path / "missing.onnx", folder=tmp_path, time_limit=0)
    model = saved(mlp(), tmp_path / "mlp.onnx")
    with pytest.raises(DataError):
        starter(model, samples(tmp_path / "c.npz", 3), folder=tmp_path, time_limit=0)


def test_a_key_that_there_is_not_cannot_be_written():
    text = RecipeText()
    text.table("[[stages]]", Prune)
    with pytest.raises(KeyError):
        text.key("target_mac", 0.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"), (3, "3"), (0.5, "0.5"), ("a\tb", '"a\\tb"'), ([1, 2], "[1, 2]"),
        ({"x y": [1]}, '{ "x y" = [1] }'),
    ],
)  # fmt: skip
def test_values(value: Any, text: str):
    assert toml_value(value) == text


@pytest.mark.long
def test_a_recipe_runs_as_it_stands(tmp_path):
    model = saved(mlp(), tmp_path / "mlp.onnx")
    text = starter(model, samples(tmp_path / "c.npz", 16), folder=tmp_path, time_limit=1)
    loaded(text, tmp_path)
    result = compress(tmp_path / "recipe.toml", overrides=["gates.latency_ratio=100", "gates.size_ratio=2"])
    assert result.accepted
    assert (tmp_path / "mlp.small.onnx").exists()
