"""Plans on models that were trained and exported again: applied under other names, and chosen anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from cutting import graph
from generated import generated_model
from renaming import renamed
from test_bodies import BRANCH_WEIGHTS, BRANCHES, FUNCTION_WEIGHTS, FUNCTIONS
from test_bodies import model as with_bodies

import onnxprune
from onnxprune.data import Dataset
from onnxprune.errors import LimitMissed, NothingToPrune, PlanError, UsageError
from onnxprune.model.digest import structure_digest
from onnxprune.runtime import open_session
from onnxprune.types import Plan

CHANNELS = {"amount": 0.5}
ZEROS = {"pattern": "unstructured", "amount": 0.5}
LAYERS = {"pattern": "layers", "amount": 0.5, "score": "l2"}
NETS = {
    name: getattr(small_models, name)
    for name in ("residual_net", "depthwise_net", "concat_net", "mlp", "attention")
}


def net(name: str = "residual_net", seed: int = 0) -> ir.Model:
    return ir.from_proto(NETS[name](seed))


def outputs(model: ir.Model, seed: int = 0) -> list[np.ndarray]:
    random, feeds = np.random.default_rng(seed), {}
    for value in model.graph.inputs:
        shape = [2 if not isinstance(size, int) else size for size in value.shape or ()]
        kind = value.dtype.numpy()  # type: ignore[union-attr]
        feeds[str(value.name)] = (
            random.standard_normal(shape).astype(kind) if kind != np.bool_ else np.array(True)
        )
    return list(open_session(model).run(feeds).values())


def samples(shape: tuple[int, ...] = (24, 3, 8, 8)) -> Dataset:
    values = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    return Dataset({"x": values}, None, None, "made here", "d" * 64)


# --- the same choice, under other names ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [CHANNELS, ZEROS, LAYERS, {"pattern": "2:4"}, {"pattern": "heads", "amount": 0.5}]
)
@pytest.mark.parametrize("name", NETS)
def test_a_plan_gives_the_same_again_whatever_the_names_are(name: str, options: dict[str, Any]) -> None:
    """apply(plan(m), m) is prune(m), and the same up to names where all names and places are others."""
    model = net(name)
    try:
        pruned = onnxprune.prune(model, **options)
    except NothingToPrune:
        pytest.skip("the pattern finds nothing here")
    again = onnxprune.apply_plan(model, pruned.plan)
    assert ir.to_proto(again.model).SerializeToString(deterministic=True) == ir.to_proto(
        pruned.model
    ).SerializeToString(deterministic=True)
    assert "matched" not in again.report.sections
    for seed in range(3):
        other = onnxprune.apply_plan(renamed(model, seed), pruned.plan)
        assert other.report.passed
        assert other.plan.predicted == pruned.plan.predicted
        assert other.plan.structure_digest == structure_digest(renamed(model, seed))
        assert onnxprune.compare_plans(pruned.plan, other.plan).moved == 0
        for expected, found in zip(outputs(pruned.model), outputs(other.model), strict=True):
            np.testing.assert_array_equal(found, expected)
        told = other.report.sections["matched"]
        assert told["of another name"] == told["nodes"] + told["stored tensors"]


@pytest.mark.parametrize("seed", range(6))
def test_generated_graphs_under_other_names(seed: int) -> None:
    model = ir.from_proto(generated_model(seed, 4))
    pruned = onnxprune.prune(model, amount=0.4, align=1)
    other = onnxprune.apply_plan(renamed(model, seed, interface=True), pruned.plan)
    for expected, found in zip(outputs(pruned.model), outputs(other.model), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("options", [CHANNELS, ZEROS])
@pytest.mark.parametrize(
    ("text", "weights"),
    [(FUNCTIONS, FUNCTION_WEIGHTS), (BRANCHES, BRANCH_WEIGHTS)],
    ids=["functions", "branches"],
)
def test_bodies_under_other_names(
    text: str, weights: dict[str, tuple[int, ...]], options: dict[str, Any]
) -> None:
    model = ir.from_proto(with_bodies(text, weights))
    pruned = onnxprune.prune(model, **options)
    other = onnxprune.apply_plan(renamed(model, 1), pruned.plan)
    for expected, found in zip(outputs(pruned.model), outputs(other.model), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_saved_model_under_other_names_is_verified_with_its_own_plan(tmp_path: Path) -> None:
    plan = onnxprune.plan(net(), **CHANNELS)
    onnxprune.save(renamed(net(seed=4), 2), tmp_path / "retrained.onnx")
    result = onnxprune.apply_plan(onnxprune.load(tmp_path / "retrained.onnx"), plan)
    onnxprune.save_pruned(
        result,
        tmp_path / "small.onnx",
        against=tmp_path / "retrained.onnx",
        plan_folder=tmp_path / "new.plan",
    )
    report = onnxprune.verify(
        tmp_path / "small.onnx",
        against=tmp_path / "retrained.onnx",
        plan=onnxprune.load_plan(tmp_path / "new.plan"),
    )
    assert report.passed
    with pytest.raises(PlanError, match="graph"):
        onnxprune.apply_plan(net("mlp"), onnxprune.load_plan(tmp_path / "new.plan"))
    # what was written applies where it came from without looking for anything
    again = onnxprune.apply_plan(
        onnxprune.load(tmp_path / "retrained.onnx"), onnxprune.load_plan(tmp_path / "new.plan")
    )
    assert "matched" not in again.report.sections


@pytest.mark.parametrize("options", [ZEROS, {"pattern": "2:4"}])
def test_zeros_under_other_names_are_verified(tmp_path: Path, options: dict[str, Any]) -> None:
    plan = onnxprune.plan(net(), **options)
    onnxprune.save(renamed(net(seed=4), 2), tmp_path / "retrained.onnx")
    result = onnxprune.apply_plan(onnxprune.load(tmp_path / "retrained.onnx"), plan)
    report = onnxprune.save_pruned(result, tmp_path / "small.onnx", against=tmp_path / "retrained.onnx")
    assert {"declared zeros", "graph unchanged"} <= {check.name for check in report.checks}
    assert report.passed


def as_nodes(model: ir.Model) -> ir.Model:
    """Return a model whose stored tensors are Constant nodes."""
    proto = ir.to_proto(model)
    nodes = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
    del proto.graph.initializer[:]
    for node in reversed(nodes):
        proto.graph.node.insert(0, node)
    return ir.from_proto(proto)


@pytest.mark.parametrize("options", [CHANNELS, ZEROS, LAYERS])
def test_another_exporter_of_the_same_nodes(options: dict[str, Any]) -> None:
    """Constants as nodes, another opset, other texts: the digests differ, the graphs do not."""
    pruned = onnxprune.prune(net(), **options)
    for model in (as_nodes(net()), renamed(as_nodes(net()), 2)):
        model.graph.opset_imports[""] = 18
        model.doc_string = "exported by another version"
        other = onnxprune.apply_plan(model, pruned.plan)
        assert other.plan.structure_digest == structure_digest(model) != pruned.plan.structure_digest
        for expected, found in zip(outputs(pruned.model), outputs(other.model), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_channels_follow_structure_where_names_changed_places() -> None:
    """A module that was renamed to what another was called must not lose the other's channels."""
    body = """
        a = Conv(x, {0}) ra = Relu(a) b = Conv(x, {1}) rb = Sigmoid(b)
        c = Concat <axis = 1> (ra, rb) y = Conv(c, out)
    """
    shapes = {"one": (8, 3, 1, 1), "two": (8, 3, 1, 1), "out": (4, 16, 1, 1)}
    plan = onnxprune.plan(graph(body.format("one", "two"), constants=shapes), amount=0.5)
    other = onnxprune.apply_plan(graph(body.format("two", "one"), constants=shapes, seed=9), plan).plan
    before, after = (
        {member.tensor: group.removed.tolist() for group in each.groups for member in group.members}
        for each in (plan, other)
    )
    assert before["one"] != before["two"]
    assert (after["two"], after["one"]) == (before["one"], before["two"])


def test_a_tensor_that_is_stored_apart_now_gets_the_mask_of_both() -> None:
    body = "a = MatMul(x, {0}) b = Relu(a) y = MatMul(b, {1})"
    tied = graph(body.format("w", "w"), inputs="float[N,8] x", constants={"w": (8, 8)})
    apart = graph(body.format("w1", "w2"), inputs="float[N,8] x", constants={"w1": (8, 8), "w2": (8, 8)})
    plan = onnxprune.plan(tied, **ZEROS)
    other = onnxprune.apply_plan(apart, plan).plan
    assert other.masks.keys() == {"w1", "w2"}
    assert np.array_equal(other.masks["w1"].bits, other.masks["w2"].bits)
    assert np.array_equal(other.masks["w1"].bits, plan.masks["w"].bits)
    with pytest.raises(PlanError, match="is stored once in this model, and has several masks"):
        onnxprune.apply_plan(tied, onnxprune.plan(apart, **ZEROS))


def test_protection_goes_by_the_new_names() -> None:
    plan = onnxprune.plan(net(), amount=0.5, protect=["block1.*", "none*"])
    model = renamed(net(seed=1), 3)
    other = onnxprune.apply_plan(model, plan).plan
    protected = other.recipe["protect"]
    assert protected[-1] == "none*"  # it matched nothing, and still does
    assert len(protected) > 2
    anew = onnxprune.apply_plan(model, plan, refresh=True, reallocate=True).plan
    sizes = {tuple(sorted(len(g.removed) for g in p.groups)) for p in (plan, other, anew)}
    assert len(sizes) == 1
    assert onnxprune.apply_plan(net(seed=1), plan).plan.recipe["protect"] == ["block1.*", "none*"]


def test_input_shapes_go_by_the_new_names() -> None:
    plan = onnxprune.plan(net(), amount=0.5, input_shapes={"x": [2, 3, 8, 8]})
    model = renamed(net(), 3, interface=True)
    other = onnxprune.apply_plan(model, plan).plan
    assert other.recipe["input_shapes"] == {str(model.graph.inputs[0].name): [2, 3, 8, 8]}


# --- other sizes --------------------------------------------------------------------------------------------

_NET = """
    c = Conv(x, c_w) r = Relu(c) d = Conv(r, d_w)
    p = GlobalAveragePool(d) f = Flatten(p) y = MatMul(f, out_w)
"""


def _classifier(classes: int = 10, width: int = 8, seed: int = 0) -> ir.Model:
    shapes = {"c_w": (width, 3, 3, 3), "d_w": (8, width, 1, 1), "out_w": (8, classes)}
    return graph(_NET, constants=shapes, seed=seed)


def test_other_classes_are_allowed_and_told_where_the_plan_leaves_them_alone() -> None:
    plan = onnxprune.plan(_classifier(), amount=0.5)
    result = onnxprune.apply_plan(_classifier(12, seed=1), plan)
    assert result.report.passed
    told = {entry.name: entry.reason for entry in result.report.skipped}
    assert "has shape [8, 12], not [8, 10] as in the model of the plan" in told["out_w"]
    assert result.plan.predicted[0] != plan.predicted[0]  # the cost is that of this model


def test_another_width_of_what_is_cut_is_refused() -> None:
    plan = onnxprune.plan(_classifier(), amount=0.5)
    with pytest.raises(
        PlanError, match=r"group c_w stands on other .*'c_w' has shape \[16, 3, 3, 3\], not \[8"
    ):
        onnxprune.apply_plan(_classifier(width=16), plan)


def test_another_order_of_the_channels_that_are_cut_is_refused() -> None:
    """Long indices are no structure, so they may differ; where channels go by them, the positions do not."""

    def shuffled(seed: int) -> ir.Model:
        order = np.random.default_rng(seed).permutation(80)
        body = "c = Conv(x, c_w) r = Relu(c) g = Gather <axis = 1> (r, order) y = Conv(g, d_w)"
        return graph(body, constants={"c_w": (80, 3, 1, 1), "order": order, "d_w": (4, 80, 1, 1)})

    plan = onnxprune.plan(shuffled(0), amount=0.5)
    assert onnxprune.apply_plan(renamed(shuffled(0)), plan).report.passed
    for model in (shuffled(1), renamed(shuffled(1))):
        with pytest.raises(PlanError, match="stands on other tensors or positions"):
            onnxprune.apply_plan(model, plan)


def test_another_shape_of_what_is_masked_is_refused() -> None:
    plan = onnxprune.plan(_classifier(), **ZEROS)
    with pytest.raises(PlanError, match=r"tensor 'out_w' has shape \[8, 12\], its mask \[8, 10\]"):
        onnxprune.apply_plan(_classifier(12), plan)
    spared = onnxprune.plan(_classifier(), **ZEROS, protect=["out_w"])
    assert onnxprune.apply_plan(_classifier(12), spared).report.passed


# --- chosen anew --------------------------------------------------------------------------------------------


def counts(plan: Plan) -> list[int]:
    return [len(g.removed) for g in plan.groups] + [mask.size - mask.kept for mask in plan.masks.values()]


SCORED: list[tuple[str, dict[str, Any]]] = [
    ("residual_net", {"target_macs": 0.6}),
    ("residual_net", {"amount": 0.5, "score": "wanda"}),
    ("residual_net", {"amount": 0.5, "score": "obs", "scope": "global"}),
    ("attention", {"pattern": "heads", "amount": 0.5}),
    ("residual_net", ZEROS),
    ("residual_net", {**ZEROS, "scope": "global"}),
    ("residual_net", {**ZEROS, "score": "wanda"}),
    ("mlp", {"pattern": "2:4", "score": "obs"}),
    ("mlp", {"pattern": "block:4x4", "amount": 0.5}),
    ("residual_net", LAYERS),
    ("residual_net", {**LAYERS, "score": "influence"}),
]


def data_for(name: str, options: dict[str, Any]) -> Dataset | None:
    if options.get("score") not in ("wanda", "obs", "influence"):
        return None
    return samples((24, 16) if name == "mlp" else (24, 3, 8, 8))


@pytest.mark.parametrize(("name", "options"), SCORED)
def test_refresh_keeps_every_count_and_finds_what_a_new_plan_finds(
    name: str, options: dict[str, Any]
) -> None:
    """On the same weights nothing moves; on others, a uniform recipe chooses as pruning them anew does."""
    data = data_for(name, options)
    plan = onnxprune.plan(net(name), data=data, **options)
    same = onnxprune.apply_plan(net(name), plan, refresh=True, data=data)
    rounding = 0.001 if options.get("score") == "wanda" else 0  # of shares of a tensor, within its rows
    assert onnxprune.compare_plans(plan, same.plan).moved <= rounding
    assert same.report.sections["drift"][0]["moved_share"] <= rounding

    model = renamed(net(name, seed=6), 1)
    result = onnxprune.apply_plan(model, plan, refresh=True, data=data)
    assert sorted(counts(result.plan)) == sorted(counts(plan))
    assert result.report.passed
    drift = onnxprune.compare_plans(plan, result.plan)
    assert drift.moved > 0 or options.get("pattern") == "layers"  # the same of two layers goes
    assert result.report.sections["drift"] == drift.table()
    assert result.plan.predicted == plan.predicted
    assert result.plan.weights_digest != plan.weights_digest
    if plan.recipe["scope"] == "uniform" and "target_macs" not in options:
        fresh = onnxprune.plan(model, data=data, **options)
        assert onnxprune.compare_plans(fresh, result.plan).moved == 0


def test_reallocate_gives_what_pruning_anew_gives() -> None:
    plan = onnxprune.plan(net(), target_macs=0.6, scope="global")
    model = renamed(net(seed=6), 1)
    result = onnxprune.apply_plan(model, plan, refresh=True, reallocate=True)
    fresh = onnxprune.prune(model, target_macs=0.6, scope="global")
    assert result.plan.removed.keys() == fresh.plan.removed.keys()
    assert onnxprune.compare_plans(fresh.plan, result.plan).moved == 0
    assert counts(result.plan) != counts(onnxprune.apply_plan(model, plan, refresh=True).plan)
    assert result.report.sections["matched"]["of another name"] > 0
    assert result.report.sections["drift"]


@pytest.mark.parametrize("reallocate", [False, True])
@pytest.mark.parametrize("options", [CHANNELS, ZEROS, LAYERS, {"pattern": "dead"}])
def test_data_may_be_given_where_no_score_looks_at_it(options: dict[str, Any], reallocate: bool) -> None:
    """A pipeline gives the same samples to every stage."""
    model = dead_channels(1, 2)
    plan = onnxprune.plan(model if options == {"pattern": "dead"} else net(), **options)
    model = model if options == {"pattern": "dead"} else net(seed=6)
    data = samples((24, 3, *([6, 6] if options == {"pattern": "dead"} else [8, 8])))
    result = onnxprune.apply_plan(model, plan, refresh=True, reallocate=reallocate, data=data)
    assert result.report.passed


def dead_channels(*zero: int) -> ir.Model:
    """A network in which some channels of the first layer do nothing."""
    model = _classifier()
    for name, axis in (("c_w", 0), ("d_w", 1)):
        value = model.graph.initializers[name]
        array = value.const_value.numpy().copy()  # type: ignore[union-attr]
        np.moveaxis(array, axis, 0)[list(zero)] = 0
        value.const_value = ir.tensor(array, name=name)
    return model


def test_refreshing_what_does_nothing_looks_for_it_anew() -> None:
    plan = onnxprune.plan(dead_channels(1, 2), pattern="dead")
    result = onnxprune.apply_plan(dead_channels(2, 3, 4), plan, refresh=True)
    assert [g.removed.tolist() for g in result.plan.groups if len(g.removed)] == [[2, 3, 4]]


def test_the_weights_that_stay_make_up_for_those_that_go() -> None:
    """Score obs writes the weights that stay; refreshed, it does so for the new model."""
    data = samples((64, 16))
    plan = onnxprune.plan(net("mlp"), pattern="2:4", score="obs", data=data)
    model = net("mlp", seed=6)
    result = onnxprune.apply_plan(model, plan, refresh=True, data=data)
    fresh = onnxprune.prune(model, pattern="2:4", score="obs", data=data)
    for expected, found in zip(outputs(fresh.model), outputs(result.model), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_repair_goes_with_the_new_choice() -> None:
    data = samples()
    plan = onnxprune.prune(net(), amount=0.5, data=data, recover="reconstruct").plan
    result = onnxprune.apply_plan(net(seed=6), plan, refresh=True, data=data)
    assert result.report.sections["repair"]["method"] == "reconstruct"
    assert result.plan.recipe["recover"] == "reconstruct"
    assert result.plan.recipe["data_digest"] == data.digest
    again = onnxprune.apply_plan(net(seed=6), plan, refresh=True, reallocate=True, data=data)
    assert again.report.sections["repair"]["method"] == "reconstruct"
    assert again.plan.recipe["score"] == plan.recipe["score"] == "obs"
    assert again.plan.recipe["stand_in"] == "l2"


@pytest.mark.parametrize(
    ("options", "refreshing", "words"),
    [
        ({"amount": 0.5, "score": "wanda"}, {"refresh": True}, "measured on samples: give --data"),
        ({**ZEROS, "score": "obs"}, {"refresh": True}, "measured on samples: give --data"),
        ({**LAYERS, "score": "influence"}, {"refresh": True}, "measured on data: give --data"),
        (CHANNELS, {"reallocate": True}, "reallocate plays no part without refresh"),
        (CHANNELS, {"max_drift": 0.0}, "max_drift plays no part without refresh"),
        (CHANNELS, {"refresh": True, "max_drift": 1.5}, "max_drift is a share"),
        (CHANNELS, {"before": "a.onnx"}, "before plays no part without refresh"),
        (CHANNELS, {"refresh": True, "before": "a.onnx"}, "looks at no earlier weights"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, Any], refreshing: dict[str, Any], words: str
) -> None:
    data = None if options.get("score") in (None, "l2") else samples()
    plan = onnxprune.plan(net(), data=data, **options)
    with pytest.raises(UsageError, match=words):
        onnxprune.apply_plan(net(), plan, **refreshing)


def test_earlier_weights_are_given_anew(tmp_path: Path) -> None:
    for seed in range(4):
        onnxprune.save(net(seed=seed), tmp_path / f"{seed}.onnx")
    plan = onnxprune.plan(net(seed=1), amount=0.5, score="movement", before=tmp_path / "0.onnx")
    fresh = onnxprune.plan(net(seed=3), amount=0.5, score="movement", before=tmp_path / "2.onnx")
    result = onnxprune.apply_plan(net(seed=3), plan, refresh=True, before=tmp_path / "2.onnx")
    assert onnxprune.compare_plans(fresh, result.plan).moved == 0
    assert result.plan.recipe["before"] == str(tmp_path / "2.onnx")


def test_more_drift_than_a_limit_is_refused() -> None:
    plan = onnxprune.plan(net(), **CHANNELS)
    assert onnxprune.apply_plan(net(), plan, refresh=True, max_drift=0.0).report.passed
    with pytest.raises(LimitMissed, match=r"of what goes is something else than before, more than 0\.05"):
        onnxprune.apply_plan(net(seed=6), plan, refresh=True, max_drift=0.05)


def test_channels_that_have_no_figures_go_as_the_plan_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.planning import gathering

    plan = onnxprune.plan(net(), **CHANNELS)
    honest = gathering.score_groups

    def blind(*arguments: Any) -> Any:
        scores = honest(*arguments)
        return replace(
            scores,
            channels={name: values for name, values in scores.channels.items() if name != "block1.conv1"},
            unmeasured={"block1.conv1": "nothing reads it"},
        )

    monkeypatch.setattr(gathering, "score_groups", blind)
    result = onnxprune.apply_plan(net(seed=6), plan, refresh=True)
    assert result.plan.removed["block1.conv1"].tolist() == plan.removed["block1.conv1"].tolist()
    assert result.plan.removed["block2.conv1"].tolist() != plan.removed["block2.conv1"].tolist()
    told = {entry.name: entry.reason for entry in result.report.skipped}
    assert told["block1.conv1"] == "it loses the channels of the plan, not chosen anew: nothing reads it"


def test_the_model_given_is_not_changed() -> None:
    model = net(seed=6)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    for options in (CHANNELS, ZEROS, LAYERS):
        onnxprune.apply_plan(model, onnxprune.plan(net(), **options), refresh=True)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
