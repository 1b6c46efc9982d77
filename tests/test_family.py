"""Families: each member is what it would be alone, whatever the others; what is measured is measured once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from cutting import graph

import onnxprune
from onnxprune import family as families
from onnxprune import family_survey, pruning_channels, pruning_layers, pruning_weights
from onnxprune.data import Dataset
from onnxprune.errors import NothingToPrune, OutputError, ProofError, UsageError
from onnxprune.family import Missed, prune_family, save_family, save_member
from onnxprune.family_survey import measure_family
from onnxprune.measure import turns


def data_of(*shape: int, count: int = 48, classes: int | None = None) -> Dataset:
    random = np.random.default_rng(3)
    arrays = {"x": random.standard_normal((count, *shape)).astype(np.float32)}
    return Dataset.from_arrays(
        arrays if classes is None else {**arrays, "label": random.integers(0, classes, count)}
    )


def load(name: str) -> ir.Model:
    return stack() if name == "stack" else ir.from_proto(getattr(small_models, name)())


def stack() -> ir.Model:
    """Four feed-forward blocks, each added to what comes in."""
    random = np.random.default_rng(0)
    shapes = {"up": (8, 16), "down": (16, 8)}
    weights = {
        f"{name}{number}": random.standard_normal(shape).astype(np.float32)
        for number in range(4)
        for name, shape in shapes.items()
    }
    lines, state = "", "x"
    for number in range(4):
        lines += f"""
            u{number} = MatMul({state}, up{number}) r{number} = Relu(u{number})
            d{number} = MatMul(r{number}, down{number}) h{number} = Add({state}, d{number})
        """
        state = f"h{number}"
    return graph(f"{lines} y = Relu({state})", inputs="float[N,8] x", constants=weights)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


ROWS, TOKENS = data_of(16), data_of(6, 32)

CASES = {
    "channels by macs": ("residual_net", "macs", (0.8, 0.5, 0.3), {}),
    "channels by params": ("residual_net", "params", (0.7, 0.4), {"scope": "global", "score": "l1"}),
    "channels by size": ("mlp", "size", (0.7, 0.4), {}),
    "channels by amount": ("depthwise_net", "amount", (0.25, 0.5), {"align": 1}),
    "repaired": ("mlp", "macs", (0.7, 0.4), {"data": ROWS, "recover": "reconstruct"}),
    "in rounds": ("mlp", "macs", (0.7, 0.4), {"data": ROWS, "recover": "bias", "rounds": 2}),
    "by sensitivity": ("mlp", "macs", (0.7, 0.4), {"data": ROWS, "scope": "sensitivity"}),
    "heads": ("attention", "params", (0.9, 0.8), {"pattern": "heads", "data": TOKENS, "score": "activation"}),
    "layers": ("stack", "macs", (0.8, 0.5), {"pattern": "layers", "data": data_of(8)}),
    "zeros": ("mlp", "amount", (0.5, 0.8), {"pattern": "unstructured"}),
    "zeros by obs": ("mlp", "amount", (0.5, 0.8), {"pattern": "unstructured", "score": "obs", "data": ROWS}),
    "zeros by sensitivity": (
        "mlp", "amount", (0.5, 0.8), {"pattern": "unstructured", "scope": "sensitivity", "data": ROWS},
    ),
    "zeros in rounds": (
        "mlp", "amount", (0.5, 0.8),
        {"pattern": "unstructured", "data": ROWS, "recover": "reconstruct", "rounds": 2},
    ),
}  # fmt: skip


_QUICK = ("channels by macs", "repaired", "layers", "zeros")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in _QUICK else pytest.mark.long) for case in CASES]
)
def test_a_member_is_what_prune_gives_alone(case: str, tmp_path: Path) -> None:
    """Byte for byte, plan and all, and whatever the order of the targets."""
    name, of, targets, options = CASES[case]
    family = prune_family(load(name), targets, targets_of=of, **options)
    assert [member.target for member in family.members] == list(targets)
    assert family.missed == ()
    save_family(family, tmp_path / "family", name="m")
    turned = prune_family(load(name), targets[::-1], targets_of=of, **options)
    save_family(turned, tmp_path / "turned", name="m")
    assert contents(tmp_path / "turned") == contents(tmp_path / "family")
    alone = tmp_path / "alone"
    alone.mkdir()
    for target in targets:
        result = onnxprune.prune(load(name), **{families.TARGETS_OF[of]: target}, **options)
        base = f"m-{of}-{target}"
        onnxprune.save_pruned(result, alone / f"{base}.onnx", plan_folder=alone / f"{base}.plan")
    assert contents(alone) == contents(tmp_path / "family")
    sizes = {len(text) for text in contents(alone).values()}
    assert len(sizes) > len(targets)  # the members differ


@pytest.mark.parametrize(
    ("home", "function", "case"),
    [
        (pruning_channels, "gather", "repaired"),
        (pruning_channels, "gather", "by sensitivity"),
        (pruning_layers, "gather_layers", "layers"),
        (pruning_weights, "gather_weights", "zeros by sensitivity"),
    ],
)
def test_statistics_are_gathered_once(
    home: Any, function: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    gather = getattr(home, function)
    monkeypatch.setattr(home, function, lambda *a, **k: calls.append(a) or gather(*a, **k))
    name, of, targets, options = CASES[case]
    assert len(prune_family(load(name), targets, targets_of=of, **options).members) == len(targets)
    assert len(calls) == 1


def test_times_are_measured_once_for_all_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """By latency, which is the default: one table of times, asked for every target."""
    tables, asked = [], []

    def measure(gathered: Any, wish: Any) -> object:
        tables.append(wish)
        return tables

    def decide_in_time(gathered: Any, recipe: Any, table: object) -> Any:
        assert table is tables
        asked.append(recipe["target_latency"])
        share = recipe["target_latency"] if isinstance(recipe["target_latency"], float) else 0.9
        return pruning_channels.decide(gathered, {**recipe, "target_macs": share})

    monkeypatch.setattr(pruning_channels, "measure", measure)
    monkeypatch.setattr(pruning_channels, "decide_in_time", decide_in_time)
    family = prune_family(load("residual_net"), ["0.8", "12 ms", 0.5], threads=2)
    assert [member.name for member in family.members] == ["latency-0.8", "latency-12ms", "latency-0.5"]
    assert asked == [0.8, "12 ms", 0.5]
    (wish,) = tables
    assert wish.execution.threads == 2


# --- targets that are missed --------------------------------------------------------------------------------


def test_a_target_that_can_not_be_met_is_named_and_the_others_are_made() -> None:
    family = prune_family(load("residual_net"), [0.5, 0.001, 0.7], targets_of="macs")
    assert [member.name for member in family.members] == ["macs-0.5", "macs-0.7"]
    (missed,) = family.missed
    assert (missed.name, missed.target) == ("macs-0.001", 0.001)
    assert missed.reached is not None
    assert 0.001 < missed.reached < 0.5
    assert "0.001" in missed.reason
    assert any("stem" in line for line in missed.reasons)


def test_where_nothing_can_go_for_some_targets_the_others_are_made() -> None:
    family = prune_family(load("residual_net"), [0.05, 0.5], targets_of="amount", align=8)
    assert [member.name for member in family.members] == ["amount-0.5"]
    assert [missed.name for missed in family.missed] == ["amount-0.05"]
    assert family.missed[0].reasons


def test_where_nothing_can_go_at_all_it_says_so() -> None:
    with pytest.raises(NothingToPrune) as caught:
        prune_family(load("frozen_net"), [0.5, 0.7], targets_of="macs")
    assert caught.value.reasons


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        ([], {}, "a list of shares"),
        ("0.5", {}, "a list of shares"),
        ([0.5, "0.50"], {}, "0.5 stands twice"),
        ([0.5, 0.0], {}, r"stays, in \(0, 1\], not 0.0"),
        ([0.5, "12ms"], {}, r"stays, in \(0, 1\], not '12ms'"),
        ([1.0], {"targets_of": "amount"}, r"goes, in \[0, 1\), not 1.0"),
        ([0.5, "fast"], {"targets_of": "latency"}, "not 'fast'"),
        ([0.5], {"targets_of": "mac"}, "did you mean 'macs'"),
        ([0.5], {"target_macs": 0.5}, "take the place of target_macs"),
        ([0.5], {"amount": 0.5}, "either an amount or targets"),
        ([0.5], {"colour": "red"}, "colour"),
        ([0.5], {"pattern": "2:4"}, "says itself how much goes"),
        ([0.5], {"pattern": "dead"}, "says itself how much goes"),
        ([0.5], {"pattern": "unstructured"}, "zeros change no macs"),
        ([0.5], {"pattern": "unstructured", "targets_of": "latency"}, "zeros change no latency"),
    ],
)
def test_what_makes_no_sense_is_refused(targets: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prune_family(load("mlp"), targets, **{"targets_of": "macs", **options})


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ProofError("it differs")])
def test_whatever_ends_a_run_leaves_whole_models_only(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove, calls = pruning_channels.prove_cut, []

    def fail_at_the_second(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise error
        return prove(*arguments)

    monkeypatch.setattr(pruning_channels, "prove_cut", fail_at_the_second)
    with pytest.raises(type(error)):
        prune_family(
            load("mlp"), [0.7, 0.5, 0.3], targets_of="macs", made=lambda m: save_member(m, tmp_path / "f")
        )
    assert sorted(contents(tmp_path / "f")) == [
        "model-macs-0.7.onnx", "model-macs-0.7.plan/graph.json", "model-macs-0.7.plan/plan.json",
    ]  # fmt: skip
    onnxprune.verify(tmp_path / "f" / "model-macs-0.7.onnx")


def test_an_input_is_not_written_over(tmp_path: Path) -> None:
    path = small_models.save_model(small_models.mlp(), tmp_path / "model-macs-0.5.onnx")
    before = path.read_bytes()
    family = prune_family(onnxprune.load(path), [0.5], targets_of="macs")
    with pytest.raises(OutputError, match="is an input of this model"):
        save_family(family, tmp_path)
    assert path.read_bytes() == before


def test_the_folder_of_a_family(tmp_path: Path) -> None:
    family = prune_family(load("mlp"), [0.5], targets_of="macs")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "there" / "model-macs-0.5.plan").mkdir(parents=True)
    for place, message in (
        ("file", "is a file"),
        ("nowhere/family", "there is no folder"),
        ("there", "is no plan folder"),
    ):
        with pytest.raises(OutputError, match=message):
            save_family(family, tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"
    assert contents(tmp_path / "there") == {}
    (saved,) = save_family(family, tmp_path / "new", name="net")
    assert saved.path == tmp_path / "new" / "net-macs-0.5.onnx"
    assert onnxprune.load_plan(saved.plan).recipe == family.members[0].result.plan.recipe


# --- what they are worth ------------------------------------------------------------------------------------


def made(tmp_path: Path, name: str, targets: list[float]) -> tuple[Any, ...]:
    path = small_models.save_model(getattr(small_models, name)(), tmp_path / f"{name}.onnx")
    family = prune_family(onnxprune.load(path), targets, targets_of="macs")
    return family, save_family(family, tmp_path / "family", against=path), path


def test_members_are_measured_beside_the_original(tmp_path: Path) -> None:
    family, saved, path = made(tmp_path, "residual_net", [0.7, 0.3])
    report = measure_family(
        family, saved, path, data=data_of(3, 8, 8, classes=10), metric="top1", source="mine.npz", pairs=20
    )
    rows, costs = report.sections["family"], report.sections["cost"]
    assert [row["target"] for row in rows] == [None, 0.7, 0.3]
    assert rows[1]["reached_ratio"] == costs[1]["MACs_ratio"] <= 0.7
    for row, entry in zip(costs[1:], saved, strict=True):
        assert row["size_bytes"] == entry.path.stat().st_size
        assert (row["macs"], row["parameters"]) == (entry.report.sections["cost"][1]["after"],
                                                    entry.report.sections["cost"][0]["after"])  # fmt: skip
    assert all(row["latency_ratio"]["low"] <= row["latency_ratio"]["value"] for row in rows)
    validated = onnxprune.validate(saved[1].path, path, data=data_of(3, 8, 8, classes=10))
    assert rows[2]["top1"] == validated.overall.model.as_dict()
    assert rows[2]["top1_change"] == validated.overall.change.as_dict()
    assert rows[0]["top1"] == validated.overall.reference.as_dict()
    assert report.sections["setting"]["measured_on"] == "mine.npz"
    assert report.passed
    assert len(report.checks) == 2
    assert {"analyze", "score", "all members", "measure latency", "measure accuracy"} <= set(report.seconds)


def test_all_are_timed_in_one_run_in_the_order_of_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which time is whose: the slowest must be told of the file that is slow."""
    family, saved, path = made(tmp_path, "mlp", [0.7, 0.3])
    timed = []

    def benchmark_each(a: Path, others: list[Path], **options: Any) -> Any:
        timed.append([a, *others])
        results = onnxprune.measure.latency.benchmark_each(a, others, **options)
        made_up = turns.TurnTimes(
            {key: np.full((20, 1), value) for key, value in {0: 1.0, 1: 0.0, 2: 1.0}.items()}, {}, {}
        )
        for number in range(len(others)):
            made_up.wall[1][:] = 0.25 * (number + 1)  # type: ignore[index]
            ratio = turns.ratio_of(made_up)
            object.__setattr__(results[number], "ratio", ratio)
        return results

    monkeypatch.setattr(family_survey, "benchmark_each", benchmark_each)
    report = measure_family(family, saved, path, pairs=20)
    assert timed == [[path, saved[0].path, saved[1].path]]
    assert [row["latency_ratio"]["value"] for row in report.sections["family"][1:]] == [0.25, 0.5]


@pytest.mark.parametrize(
    ("name", "shape", "metric"), [("mlp", (16,), "agreement"), ("attention", (6, 32), "cosine")]
)
def test_without_labels_outputs_are_compared(
    name: str, shape: tuple[int, ...], metric: str, tmp_path: Path
) -> None:
    family, saved, path = made(tmp_path, name, [0.7])
    report = measure_family(family, saved, path, data=data_of(*shape), pairs=20)
    original, member = report.sections["family"]
    assert report.sections["setting"]["metric"] == metric
    assert original[metric]["value"] == 1.0
    assert 0 < member[metric]["value"] < 1.0


def test_a_family_of_none_says_what_was_missed(tmp_path: Path) -> None:
    path = small_models.save_model(small_models.mlp(), tmp_path / "mlp.onnx")
    family = prune_family(onnxprune.load(path), [0.0001], targets_of="macs")
    assert [type(entry) for entry in family.missed] == [Missed]
    report = measure_family(family, (), path, data=ROWS)
    assert report.sections["missed"][0]["target"] == 0.0001
    assert report.sections["family"] == []


def test_a_metric_takes_samples(tmp_path: Path) -> None:
    family, saved, path = made(tmp_path, "mlp", [0.7])
    with pytest.raises(UsageError, match="give --eval"):
        measure_family(family, saved, path, metric="top1")


def test_the_example_of_the_document_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "family.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    small_models.save_model(small_models.residual_net(), Path("model.onnx"))
    names: dict[str, Any] = {}
    exec(compile(code.replace("0.5]", "0.5, 0.001]"), "docs/family.md", "exec"), names)  # noqa: S102 # our own text
    assert [row["target"] for row in names["report"].sections["family"]] == [None, 0.8, 0.5]
    assert sorted(path.name for path in Path("family").glob("*.onnx")) == [
        "model-macs-0.5.onnx",
        "model-macs-0.8.onnx",
    ]
    assert capsys.readouterr().out.startswith("0.001 0.")
