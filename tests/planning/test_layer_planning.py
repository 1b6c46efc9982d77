"""Pattern layers from a wish to a proved file and back: influence, plans, re-trained models, verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import graph, parameters

import onnxprune
from onnxprune import proving, pruning_layers
from onnxprune.data import Dataset
from onnxprune.errors import DataError, LimitMissed, NothingToPrune, PlanError, ProofError, UsageError
from onnxprune.planning import layers as layer_planning
from onnxprune.types import Check, Plan

BLOCKS, D, F = 4, 8, 16


def network(seed: int = 0, weak: int | None = None, blocks: int = BLOCKS, prefix: str = "") -> ir.Model:
    """Feed-forward blocks, the second half with attention in front; the weak one hardly does anything."""
    random = np.random.default_rng(seed)
    lines, constants = [], {}

    def weight(name: str, rows: int, columns: int, scale: float = 1.0) -> str:
        constants[f"{prefix}{name}"] = (scale * random.standard_normal((rows, columns))).astype(np.float32)
        return f"{prefix}{name}"

    state = "x"
    for i in range(blocks):
        scale = 0.001 if i == weak else 1.0
        if i >= blocks // 2:
            q, k = weight(f"q{i}", D, D), weight(f"k{i}", D, D)
            lines.append(f"""
                q{i}_ = MatMul({state}, {q}) k{i}_ = MatMul({state}, {k})
                t{i} = Transpose<perm = [0, 2, 1]>(k{i}_) s{i} = MatMul(q{i}_, t{i})
                p{i} = Softmax<axis = -1>(s{i}) a{i} = MatMul(p{i}, {state}) g{i} = Add({state}, a{i})
            """)
            state = f"g{i}"
        up, down = weight(f"up{i}", D, F), weight(f"down{i}", F, D, scale)
        lines.append(f"""
            u{i} = MatMul({state}, {up}) r{i} = Relu(u{i}) d{i} = MatMul(r{i}, {down})
            h{i} = Add({state}, d{i})
        """)
        state = f"h{i}"
    lines.append(f"y = MatMul({state}, {weight('head', D, 3)})")
    return graph("".join(lines), inputs="float[N,T,8] x", constants=constants)


def samples(seed: int = 0) -> Dataset:
    x = np.random.default_rng(seed).standard_normal((6, 5, D)).astype(np.float32)
    return Dataset.from_arrays({"x": x})


def gone(plan: Plan) -> list[str]:
    return [group.branches[number].value for group in plan.groups for number in group.removed]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(network()), path)
    return path


@pytest.mark.parametrize("weak", range(BLOCKS))
def test_the_branch_of_least_influence_goes(weak: int) -> None:
    result = onnxprune.prune(network(weak=weak), pattern="layers", amount=0.2, data=samples())
    assert gone(result.plan) == [f"d{weak}"]
    assert result.report.passed
    assert not {f"up{weak}", f"down{weak}"} & set(result.model.graph.initializers)


def test_prune_save_load_verify(file: Path, tmp_path: Path) -> None:
    model = onnxprune.load(file)
    result = onnxprune.prune(model, pattern="layers", amount=0.5, data=samples())
    out, folder = tmp_path / "small.onnx", tmp_path / "small.plan"
    report = onnxprune.save_pruned(result, out, against=file, plan_folder=folder)
    assert report.passed
    assert {"cut equals its exact twin", "planned layers", "interface"} <= {c.name for c in report.checks}
    assert parameters(onnxprune.load(out)) == result.plan.predicted[1].params < parameters(model)
    plan = onnxprune.load_plan(folder)
    assert (gone(plan), plan.groups[0].branches) == (gone(result.plan), result.plan.groups[0].branches)
    assert onnxprune.verify(out, against=file, plan=plan).passed


def test_the_given_model_is_not_changed() -> None:
    model = network()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    onnxprune.prune(model, pattern="layers", amount=0.5, data=samples())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_the_report_lists_what_goes_and_what_stays() -> None:
    result = onnxprune.prune(network(weak=0), pattern="layers", amount=0.8, data=samples())
    rows = result.report.sections["layers"]
    assert [row["removed"] for row in rows] == [True] * 4 + [False] * 2
    assert rows[0]["kind"] == "feed forward"
    scores = [row["score"] for row in rows]
    assert scores[:4] == sorted(scores[:4])
    assert scores[0] < 0.01 < min(scores[1:])
    floors = [entry for entry in result.report.skipped if "floor" in entry.reason]
    assert len(floors) == 2  # one for each kind
    assert "groups" not in result.report.sections


def test_plan_is_what_prune_would_do() -> None:
    options = {"pattern": "layers", "target_macs": 0.7, "data": samples()}
    plan = onnxprune.plan(network(), **options)
    result = onnxprune.prune(network(), **options)  # type: ignore[arg-type]
    assert gone(plan) == gone(result.plan) != []


@pytest.mark.parametrize(("option", "field"), [("target_macs", "macs"), ("target_params", "params")])
def test_targets_are_met(option: str, field: str) -> None:
    result = onnxprune.prune(network(), pattern="layers", score="l2", **{option: 0.6})  # type: ignore[arg-type]
    before, after = result.plan.predicted
    assert 0.3 < getattr(after, field) / getattr(before, field) <= 0.6


@pytest.mark.parametrize("numbers", [[], [0], [1, 3, 5], range(6)])
def test_the_quick_share_is_that_of_the_cost(numbers: Sequence[int]) -> None:
    trial = layer_planning._Trial(layer_planning.find_layers(network()))
    cost = trial.cost(list(numbers))
    assert trial.share_left(numbers, "params") == pytest.approx(cost.params / trial.whole.params)
    assert trial.share_left(numbers, "macs") == pytest.approx(cost.macs / trial.whole.macs, rel=1e-3)


def test_a_target_beyond_the_floors_is_missed() -> None:
    with pytest.raises(LimitMissed):
        onnxprune.prune(network(), pattern="layers", score="l2", target_params=0.05)


def test_a_plan_applies_to_a_retrained_model(tmp_path: Path) -> None:
    result = onnxprune.prune(network(0), pattern="layers", amount=0.5, data=samples())
    onnxprune.save_plan(result.plan, tmp_path / "p.plan")
    retrained = network(1)
    again = onnxprune.apply_plan(retrained, onnxprune.load_plan(tmp_path / "p.plan"))
    assert again.report.passed
    assert list(again.model.graph.initializers) == list(result.model.graph.initializers)
    left = again.model.graph.initializers["head"].const_value
    expected = retrained.graph.initializers["head"].const_value
    np.testing.assert_array_equal(left.numpy(), expected.numpy())  # type: ignore[union-attr]


def test_a_plan_of_other_branches_is_refused() -> None:
    plan = onnxprune.plan(network(), pattern="layers", amount=0.5, data=samples())
    with pytest.raises(PlanError, match="another graph"):
        onnxprune.apply_plan(network(blocks=3), plan)
    assert onnxprune.apply_plan(network(prefix="other_"), plan).report.passed  # found by structure
    with pytest.raises(PlanError, match="branches of the plan are not those"):  # a plan of an earlier version
        onnxprune.apply_plan(network(prefix="other_"), replace(plan, graph=None))
    with pytest.raises(PlanError, match="knows nothing of this model's feed_forward"):
        onnxprune.apply_plan(
            network(), replace(plan, groups=tuple(g for g in plan.groups if g.name == "attention"))
        )


@pytest.mark.parametrize("missing", ["a removed branch is there", "a kept branch is gone"])
def test_verify_sees_a_file_that_is_not_as_planned(missing: str, tmp_path: Path) -> None:
    plan = onnxprune.plan(network(weak=1), pattern="layers", amount=0.2, data=samples())
    options = {"weak": 1, "amount": 0.4} if missing == "a kept branch is gone" else {"weak": 2, "amount": 0.2}
    result = onnxprune.prune(
        network(weak=int(options["weak"])), pattern="layers", amount=options["amount"], data=samples()
    )
    path = tmp_path / "other.onnx"
    onnxprune.save(result.model, path)
    checks = {check.name: check for check in onnxprune.verify(path, plan=plan).checks}
    assert not checks["planned layers"].passed
    word = "should be there" if missing == "a kept branch is gone" else "should be gone"
    assert word in checks["planned layers"].detail


def test_a_failed_proof_names_the_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    true_remove = pruning_layers.remove_branches

    def faulty(model: ir.Model, branches: object) -> ir.Model:
        """Take d2 along with d1."""
        given = list(branches)  # type: ignore[call-overload]
        layers = pruning_layers.find_layers(network())
        more = [b for b in layers.branches if b.value == "d2"] if any(b.value == "d1" for b in given) else []
        return true_remove(model, [*given, *(b for b in more if b not in given)])

    monkeypatch.setattr(pruning_layers, "remove_branches", faulty)
    monkeypatch.setattr(proving, "remove_branches", faulty)
    with pytest.raises(ProofError, match=r"fails for branch n.*: protect it"):
        onnxprune.prune(network(weak=1), pattern="layers", amount=0.2, data=samples())


def test_a_proof_that_fails_for_all_together_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([Check("proof", False, "differs"), *[Check("proof", True, "")] * 9])
    monkeypatch.setattr(proving, "prove", lambda *_, **__: next(answers))
    with pytest.raises(ProofError, match="no single branch fails"):
        onnxprune.prune(network(), pattern="layers", amount=0.5, score="l2")


def test_protected_branches_and_globs_that_match_nothing() -> None:
    options = {"pattern": "layers", "amount": 0.2, "data": samples()}
    result = onnxprune.prune(network(weak=1), **options, protect=["down1", "tpyo*"])  # type: ignore[arg-type]
    assert gone(result.plan) not in ([], ["d1"])
    reasons = {entry.name: entry.reason for entry in result.report.skipped}
    assert "no branch or weight" in reasons["tpyo*"]
    assert "protected by 'down1'" in reasons.values()


def test_what_stays_of_a_branch_is_said() -> None:
    body = "u = MatMul(x, w) d = MatMul(u, v) y = Add(x, d) e = MatMul(y, p) z = Add(y, e)"
    constants = {"w": (D, F), "v": (F, D), "p": (D, D)}
    model = graph(body, inputs="float[N,8] x", outputs="z; u", constants=constants)
    result = onnxprune.prune(model, pattern="layers", amount=0.6, score="l2", protect=["p"])
    assert any("what n0 computes stays" in entry.reason for entry in result.report.skipped)


def test_without_data_the_option_is_named() -> None:
    with pytest.raises(UsageError, match="give --data"):
        onnxprune.prune(network(), pattern="layers", amount=0.5)


def test_data_that_does_not_fit() -> None:
    data = Dataset.from_arrays({"z": np.zeros((2, 5, D), np.float32)})
    with pytest.raises(DataError, match="no input of the model"):
        onnxprune.prune(network(), pattern="layers", amount=0.5, data=data)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"score": "taylor"}, "taylor"),
        ({"score": "l2", "scope": "sideways"}, "sideways"),
        ({"score": "l2", "target_macs": 0.5}, "amount and target_macs"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        onnxprune.prune(network(), **{"pattern": "layers", "amount": 0.5, **options})  # type: ignore[arg-type]


def test_nothing_to_prune_says_why() -> None:
    constants = {"p": (D, D), "q": (D, D)}
    projection = graph(
        "f = MatMul(x, p) g = MatMul(x, q) y = Add(f, g)", inputs="float[N,8] x", constants=constants
    )
    with pytest.raises(NothingToPrune, match=r"no residual branch can be removed .*projection"):
        onnxprune.prune(projection, pattern="layers", amount=0.5, score="l2")
    single = graph("f = MatMul(x, p) y = Add(f, x)", inputs="float[N,8] x", constants={"p": (D, D)})
    with pytest.raises(NothingToPrune, match=r"all 1 residual branches stay .*the floor"):
        onnxprune.prune(single, pattern="layers", amount=0.5, score="l2")
    with pytest.raises(NothingToPrune, match="less than one"):
        onnxprune.prune(network(), pattern="layers", amount=0.01, score="l2")


@pytest.mark.parametrize("score", ["influence", "l2"])
def test_an_encoder_and_the_cross_attention_that_reads_it(score: str, tmp_path: Path) -> None:
    """The cross-attention must stay, whatever its score; branches of the encoder go without it."""
    body = """
        u = MatMul(z, u_w) d = MatMul(u, d_w) e = Add(z, d) v = MatMul(e, v_w) f = Add(e, v)
        q = MatMul(x, q_w) t = Transpose<perm = [0, 2, 1]>(f) s = MatMul(q, t) p = Softmax<axis = -1>(s)
        c = MatMul(p, f) m = Mul(c, little) h = Add(x, m)
        k = MatMul(h, k_w) g = Transpose<perm = [0, 2, 1]>(k) w = MatMul(h, g) a = MatMul(w, h) y = Add(h, a)
    """
    constants = {"u_w": (D, F), "d_w": (F, D), **dict.fromkeys(("v_w", "k_w"), (D, D))}
    little = np.array(1e-4, np.float32)
    constants["q_w"] = np.full((D, D), 1e-4, np.float32)  # type: ignore[assignment]
    inputs = "float[N,T,8] x, float[N,S,8] z"
    model = graph(body, inputs=inputs, constants={**constants, "little": little})
    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(model), path)
    random = np.random.default_rng(0)
    z, x = (random.standard_normal((4, length, D)).astype(np.float32) for length in (5, 3))
    data = Dataset.from_arrays({"x": x, "z": z}) if score == "influence" else None
    result = onnxprune.prune(model, pattern="layers", amount=0.25, score=score, data=data)
    assert gone(result.plan) in (["d"], ["v"])
    assert any("would need" in entry.reason for entry in result.report.skipped)
    assert onnxprune.save_pruned(result, tmp_path / "small.onnx", against=path).passed


def test_float16_models() -> None:
    proto = ir.to_proto(network())
    for tensor in proto.graph.initializer:
        half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del proto.graph.value_info[:]
    x = samples().arrays["x"].astype(np.float16)
    data = Dataset.from_arrays({"x": x})
    result = onnxprune.prune(ir.from_proto(proto), pattern="layers", amount=0.5, data=data)
    assert result.report.passed
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
