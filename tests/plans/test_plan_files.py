"""Plans on disk: what is saved comes back, and what is damaged is refused by name."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import safetensors.numpy
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bodies import BRANCH_WEIGHTS, BRANCHES
from test_bodies import model as with_bodies

import onnxprune
from onnxprune.errors import OutputError, PlanError
from onnxprune.outlines import Outline, OutlinedNode, OutlinedTensor, OutlinedValue
from onnxprune.plans import load_plan, save_plan
from onnxprune.types import Cost, Mask, Plan, PlannedBranch, PlannedGroup, PlannedMember, Skipped

# --- any plan -----------------------------------------------------------------------------------------------

texts = st.text(max_size=12)
names = st.text(min_size=1, max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
costs = st.builds(Cost, *[st.integers(0, 2**60)] * 3)
positions = st.sets(st.integers(0, 2**31 - 2), max_size=5).map(lambda s: np.array(sorted(s), dtype=np.int32))


@st.composite
def groups(draw: st.DrawFn) -> PlannedGroup:
    size = draw(st.integers(1, 30))
    gone = sorted(draw(st.sets(st.integers(0, size - 1), max_size=size - 1)))
    members = st.builds(
        PlannedMember, names, st.integers(0, 7), st.just(2**31 - 1), names, st.booleans(), positions
    )
    kind = draw(st.sampled_from(["channels", "heads", "head_dim", "hidden", "experts", "attention", "other"]))
    scores = st.floats(allow_nan=False, allow_infinity=False)
    entries = st.builds(PlannedBranch, names, names, st.lists(names, max_size=2).map(tuple), scores)
    branches = tuple(draw(st.just([]) | st.lists(entries, min_size=size, max_size=size)))
    removed = np.array(gone, dtype=np.int32)
    found = tuple(draw(st.lists(members, max_size=3)))
    return PlannedGroup(
        draw(names), kind, size, removed, found, draw(st.none() | texts), draw(st.booleans()), branches
    )


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    return Mask.pack(np.random.default_rng(draw(st.integers(0, 99))).random(shape) < 0.5)


interfaces = st.builds(
    OutlinedValue, names, texts, st.none() | st.lists(st.integers(0, 2**40) | names, max_size=3).map(tuple)
)
tensors = st.builds(
    OutlinedTensor,
    names,
    st.lists(st.integers(0, 2**40), max_size=3).map(tuple),
    st.none() | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3).map(tuple),
)


def outlines(bodies: st.SearchStrategy[dict[str, tuple[Outline, ...]]]) -> st.SearchStrategy[Outline]:
    """Graphs whose nodes hold what ``bodies`` draws."""
    ends = st.lists(st.none() | names, max_size=3).map(tuple)
    attributes = st.dictionaries(names, texts, max_size=2)
    nodes = st.builds(OutlinedNode, names, names, ends, ends, attributes, bodies)
    values = st.lists(interfaces, max_size=2).map(tuple)
    return st.builds(
        Outline,
        values,
        values,
        st.lists(nodes, max_size=3).map(tuple),
        st.dictionaries(names, tensors, max_size=3),
    )


inner = outlines(st.just({}))
graphs = outlines(st.dictionaries(names, st.lists(inner, max_size=2).map(tuple), max_size=1))

plans = st.builds(
    Plan,
    pattern=st.sampled_from(["channels", "2:4", "block:4x4"]),
    structure_digest=texts,
    weights_digest=texts,
    groups=st.lists(groups(), max_size=3).map(tuple),
    masks=st.dictionaries(names, masks(), max_size=3),
    recipe=st.dictionaries(texts, json_values, max_size=3),
    predicted=st.tuples(costs, costs),
    seed=st.integers(0, 2**32),
    versions=st.dictionaries(texts, texts, max_size=3),
    skipped=st.lists(st.builds(Skipped, texts, texts), max_size=3).map(tuple),
    graph=st.none() | graphs,
)


def comparable(plan: Plan) -> object:
    """The plan with its arrays as lists, so that == compares contents."""
    return (
        plan.pattern, plan.structure_digest, plan.weights_digest, plan.recipe, plan.predicted, plan.seed,
        plan.versions, plan.skipped, plan.graph,
        [
            (g.name, g.kind, g.size, g.removed.tolist(), g.skipped,
             [(m.tensor, m.axis, m.size, m.consumer, m.contracted, m.removed.tolist()) for m in g.members],
             g.exact, g.branches)
            for g in plan.groups
        ],
        {name: (mask.shape, mask.bits.tolist()) for name, mask in plan.masks.items()},
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(plans)
def test_a_plan_comes_back_as_it_was(plan):
    with tempfile.TemporaryDirectory() as folder:
        again = load_plan(save_plan(plan, Path(folder) / "any.plan"))
    assert comparable(again) == comparable(plan)
    assert all(group.removed.dtype == np.int32 for group in again.groups)
    assert all(member.removed.dtype == np.int32 for group in again.groups for member in group.members)


# --- one plan, damaged --------------------------------------------------------------------------------------


def example() -> Plan:
    member = PlannedMember("conv.weight", 0, 8, "conv_node", False, np.array([1, 3], dtype=np.int32))
    group = PlannedGroup("conv", "channels", 8, np.array([1, 3], dtype=np.int32), (member,))
    mask = Mask.pack(np.arange(15).reshape(3, 5) % 2 == 0)
    return Plan(
        "channels", "s" * 64, "w" * 64, (group,), {"fc.weight": mask}, {"amount": 0.25},
        (Cost(100, 1000, 400), Cost(75, 750, 300)), 0, {"numpy": "2"}, (Skipped("fc", "output"),),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_plan(example(), tmp_path / "example.plan")


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(PlanError) as raised:
        load_plan(folder)
    message = str(raised.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message, message


def rewrite(folder: Path, change) -> None:
    path = folder / "plan.json"
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


def test_the_file_is_readable(folder):
    contents = json.loads((folder / "plan.json").read_text())
    assert contents["schema"] == 1
    assert contents["groups"][0]["members"] == [
        {
            "tensor": "conv.weight",
            "axis": 0,
            "size": 8,
            "consumer": "conv_node",
            "contracted": False,
            "removed": [1, 3],
        }
    ]
    assert contents["masks"] == {"fc.weight": {"shape": [3, 5], "kept": 8}}


@pytest.mark.parametrize("key", [
    "schema", "pattern", "structure_digest", "weights_digest", "recipe", "seed", "versions", "predicted",
    "groups", "masks", "skipped",
])  # fmt: skip
def test_a_missing_key_is_named(folder, key):
    rewrite(folder, lambda contents: contents.pop(key))
    refused(folder, key)


@pytest.mark.parametrize("key", ["name", "kind", "size", "removed", "members"])
def test_a_missing_key_of_a_group_is_named(folder, key):
    rewrite(folder, lambda contents: contents["groups"][0].pop(key))
    refused(folder, f"groups.0.{key}")


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("schema",), 2, "schema 2"),
        (("seed",), "zero", "seed"),
        (("pattern",), 7, "pattern"),
        (("surprise",), 1, "surprise"),
        (("groups", 0, "kind"), "chanels", "groups.0.kind"),
        (("groups", 0, "size"), 0, "groups.0.size"),
        (("groups", 0, "removed"), [1, 1], "conv"),
        (("groups", 0, "removed"), [8], "conv"),
        (("groups", 0, "removed"), [-1], "removed"),
        (("groups", 0, "removed"), list(range(8)), "conv"),
        (("groups", 0, "members", 0, "axis"), -1, "groups.0.members.0.axis"),
        (("groups", 0, "members", 0, "removed"), ["one"], "groups.0.members.0.removed"),
        (("groups", 0, "members", 0, "removed"), [-1], "removed"),
        (("groups", 0, "members", 0, "removed"), [8], "conv"),
        (("groups", 0, "members", 0, "removed"), [1, 1], "conv"),
        (("groups", 0, "members", 0, "removed"), [3, 1], "conv"),
        (("groups", 0, "members", 0, "removed"), [2**40], "removed"),
        (("groups", 0, "members", 0, "size"), 2**70, "size"),
        (("groups", 0, "removed"), [2**70], "groups.0.removed"),
        (("masks", "fc.weight", "shape"), [-3, -5], "fc.weight"),
        (("skipped",), [{"title": "x"}], "skipped.0"),
        (("predicted",), {}, "predicted"),
        (("predicted", "after", "macs"), 0.5, "macs"),
        (("masks", "fc.weight", "kept"), 9, "fc.weight"),
        (("masks", "fc.weight", "shape"), [3, 500], "fc.weight"),
        (("masks", "fc.weight", "shape"), [2**40, 2**40], "fc.weight"),
        (("masks", "other"), {"shape": [2], "kept": 1}, "other"),
    ],
)
def test_a_wrong_value_is_named(folder, path, value, word):
    def change(contents):
        for step in path[:-1]:
            contents = contents[step]
        contents[path[-1]] = copy.copy(value)

    rewrite(folder, change)
    refused(folder, word)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": NaN}', "\x00", '{"schema": 1'])
def test_what_is_no_plan_is_refused(folder, text):
    (folder / "plan.json").write_text(text)
    refused(folder)


def test_numbers_that_are_no_numbers_are_refused(folder):
    path = folder / "plan.json"
    path.write_text(path.read_text().replace("0.25", "NaN"))
    refused(folder)


def test_a_missing_plan_is_refused(tmp_path):
    refused(tmp_path / "nowhere.plan", "cannot be read")


def test_missing_or_damaged_masks_are_refused(folder):
    path = folder / "masks.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused(folder)
    path.write_bytes(safetensors.numpy.save({"fc.weight": np.zeros(1, dtype=np.uint8)}))
    refused(folder, "fc.weight")
    path.unlink()
    refused(folder, "masks.safetensors")


# --- writing ------------------------------------------------------------------------------------------------


def test_a_plan_replaces_an_older_plan_and_leaves_nothing_behind(folder):
    (folder / "note.txt").write_text("of the older plan")
    save_plan(example(), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["masks.safetensors", "plan.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["example.plan"]


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_what_is_no_plan_is_never_replaced(tmp_path, taken):
    target = tmp_path / "taken"
    if taken == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is no plan folder"):
        save_plan(example(), target)
    assert (target if taken == "file" else target / "mine.txt").read_text() == "mine"


def test_a_missing_parent_is_one_line(tmp_path):
    with pytest.raises(OutputError, match="create it first"):
        save_plan(example(), tmp_path / "no" / "such" / "x.plan")


# --- the outline of the graph -------------------------------------------------------------------------------


@pytest.fixture
def outlined(tmp_path) -> Path:
    plan = onnxprune.prune(ir.from_proto(small_models.mlp()), amount=0.5).plan
    return save_plan(plan, tmp_path / "mlp.plan")


def test_the_outline_has_a_line_for_each_node_and_tensor(outlined):
    lines = (outlined / "graph.json").read_text().splitlines()
    assert sum('"operator"' in line for line in lines) == 5
    assert sum('"dtype"' in line for line in lines) == 6


def test_a_plan_without_an_outline_is_one_of_an_earlier_version(outlined):
    (outlined / "graph.json").unlink()
    plan = load_plan(outlined)
    assert plan.graph is None
    assert onnxprune.apply_plan(ir.from_proto(small_models.mlp(seed=4)), plan).report.passed
    with pytest.raises(PlanError, match="earlier version, which kept no outline"):
        onnxprune.apply_plan(ir.from_proto(small_models.attention()), plan)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda graph: graph.pop("nodes"), "nodes"),
        (lambda graph: graph.update(schema=2), "schema 2"),
        (lambda graph: graph.update(surprise=1), "surprise"),
        (lambda graph: graph["nodes"][0].pop("operator"), "nodes.0.operator"),
        (lambda graph: graph["nodes"][0].update(inputs="x"), "nodes.0.inputs"),
        (lambda graph: graph["tensors"]["fc1.weight"].update(shape=[-1]), "fc1.weight"),
    ],
)
def test_a_damaged_outline_is_refused(outlined, change, word):
    path = outlined / "graph.json"
    graph = json.loads(path.read_text())
    change(graph)
    path.write_text(json.dumps(graph))
    refused(outlined, "graph.json", word)
    path.write_text("{")
    refused(outlined, "graph.json", "is no JSON")


def test_an_outline_that_turns_in_a_circle_ends(outlined):
    """Files come from anywhere: a node that reads what it writes must not keep the walk going."""
    path = outlined / "graph.json"
    graph = json.loads(path.read_text())
    graph["nodes"][-1]["inputs"][0] = graph["nodes"][-1]["outputs"][0]
    path.write_text(json.dumps(graph))
    with pytest.raises(PlanError, match="another graph"):
        onnxprune.apply_plan(ir.from_proto(small_models.mlp()), load_plan(outlined))


@pytest.mark.parametrize("proto", [small_models.attention(), with_bodies(BRANCHES, BRANCH_WEIGHTS)])
def test_the_outlines_of_real_plans_come_back(tmp_path, proto):
    """With the sizes that a Reshape reads, and with the bodies of an If."""
    plan = onnxprune.plan(ir.from_proto(proto), amount=0.5)
    assert plan.graph is not None
    assert load_plan(save_plan(plan, tmp_path / "real.plan")).graph == plan.graph
