"""Inputs by number: for each kind of file what is valid, how it is changed, and what reads it."""

from __future__ import annotations

import functools
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import generated
import model_files
import numpy as np
import onnx
import onnx_ir as ir
import recipe_projects
import records
import small_models
from onnx import TensorProto, helper

import onnxprune
from fuzzing import plain, protobufs
from onnxprune.data import load_data
from onnxprune.inspection import inspect_model
from onnxprune.model.io import load
from onnxprune.pipeline import save_pruned
from onnxprune.plans import load_plan, save_plan
from onnxprune.recipe.load import load_recipe
from onnxprune.record import Record, read_record
from onnxprune.report.html import html
from onnxprune.report.junit import junit
from onnxprune.report.markdown import markdown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Says which stage an input is in: ``read`` is ours alone; in ``run`` ONNX Runtime takes part, whose crashes
#: the command line contains.
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of input.

    Attributes:
        share: of all inputs.
        write: writes an input into a folder.
        read: does with it what commands do.
    """

    share: float
    write: Callable[[Path, random.Random], None]
    read: Callable[[Path, random.Random, Told], None]


# --- models -------------------------------------------------------------------------------------------------


@functools.cache
def _models() -> tuple[bytes, ...]:
    made = [
        small_models.residual_net(width=4), small_models.depthwise_net(width=4), small_models.mlp(width=6),
        small_models.concat_net(width=4), small_models.attention(width=8, heads=2, tokens=3),
        model_files.mlp(width=4), model_files.everything(), _with_bodies(),
        *(generated.generated_model(seed, 4) for seed in range(4)),
    ]  # fmt: skip
    return tuple(proto.SerializeToString() for proto in made)


def _with_bodies() -> onnx.ModelProto:
    """Return a model of a loop, a branch and a function, each around a product with a weight."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 3], np.arange(9, dtype=np.float32).tolist())

    def value(name: str, *dims: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))

    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], [value("t", "n", 3)]
    )
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["e"])], "else", [], [value("e", "n", 3)])
    truth = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["next"]),
            helper.make_node("Identity", ["on"], ["still"]),
        ],
        "body",
        [truth("i", TensorProto.INT64, []), truth("on", TensorProto.BOOL, []), value("state", "n", 3)],
        [truth("still", TensorProto.BOOL, []), value("next", "n", 3)],
    )
    function = helper.make_function(
        "local", "Block", ["a", "b"], ["c"],
        [helper.make_node("MatMul", ["a", "b"], ["m"]), helper.make_node("Relu", ["m"], ["c"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    constants = [
        helper.make_tensor("times", TensorProto.INT64, [], [2]),
        helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
    ]
    nodes = [
        helper.make_node("If", ["yes"], ["branched"], then_branch=then, else_branch=other),
        helper.make_node("Loop", ["times", "yes", "branched"], ["looped"], body=body),
        helper.make_node("Block", ["looped", "w"], ["y"], domain="local"),
    ]
    graph = helper.make_graph(
        nodes, "bodies", [value("x", "n", 3)], [value("y", "n", 3)], [weight, *constants]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function])


def _write_model(folder: Path, rng: random.Random) -> None:
    contents = rng.choice(_models())
    proto = onnx.ModelProto.FromString(contents)
    if rng.random() < 0.25:
        _move_out(proto, folder)
    if rng.random() < 0.88:
        protobufs.mutate(proto, rng, rng.choice((1, 1, 1, 2, 3, 5)))
        try:
            contents = proto.SerializeToString()
        except Exception:  # noqa: BLE001 # a text that is no UTF-8, or a nest that protobuf itself refuses
            contents = protobufs.flip(contents, rng)
    else:
        contents = protobufs.flip(contents, rng)
    (folder / "model.onnx").write_bytes(contents)


def _move_out(proto: onnx.ModelProto, folder: Path) -> None:
    """Put the weights into a file beside the model."""
    data = bytearray()
    for tensor in proto.graph.initializer:
        if tensor.raw_data and not tensor.external_data:
            entries = {"location": "data.bin", "offset": str(len(data)), "length": str(len(tensor.raw_data))}
            data += tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=value)
    (folder / "data.bin").write_bytes(bytes(data))


def _read_model(folder: Path, rng: random.Random, told: Told) -> None:
    path = folder / "model.onnx"
    model = load(path)
    told("run")  # which it is asked about from here on
    inspect_model(path)
    if rng.random() < 0.25:
        pattern = rng.choice(("channels", "unstructured", "2:4", "dead"))
        amount = 0.4 if pattern in ("channels", "unstructured") else None
        pruned = onnxprune.prune(model, pattern=pattern, amount=amount, align=1)
        save_pruned(pruned, folder / "out.onnx")


# --- data, recipes, plans, records --------------------------------------------------------------------------

_INPUTS = {"x": ((None, 16), np.dtype(np.float32))}


def _write_data(folder: Path, rng: random.Random) -> None:
    (folder / "data.npz").write_bytes(plain.npz_bytes(rng))


def _read_data(folder: Path, _rng: random.Random, _told: Told) -> None:
    load_data(folder / "data.npz").check_against(_INPUTS)


def _write_recipe(folder: Path, rng: random.Random) -> None:
    values = plain.mutate_values(tomllib.loads(recipe_projects.RECIPE), rng, rng.choice((0, 1, 1, 2, 4)))
    if not isinstance(values, dict):
        values = {}
    if rng.random() < 0.7:
        (folder / "recipe.toml").write_bytes(plain.toml_text(values, rng))
    else:
        (folder / "recipe.json").write_bytes(plain.json_text(values, rng))


def _read_recipe(folder: Path, _rng: random.Random, _told: Told) -> None:
    for name in ("recipe.toml", "recipe.json"):
        if (folder / name).exists():
            load_recipe(folder / name)


@functools.cache
def _plans() -> tuple[dict[str, bytes], ...]:
    import tempfile

    found = []
    for pattern, amount in (("channels", 0.5), ("unstructured", 0.5)):
        model = ir.serde.deserialize_model(small_models.residual_net(width=4))
        with tempfile.TemporaryDirectory() as folder:
            save_plan(onnxprune.plan(model, pattern=pattern, amount=amount, align=1), Path(folder, "p.plan"))
            found.append({file.name: file.read_bytes() for file in Path(folder, "p.plan").iterdir()})
    return tuple(found)


def _write_plan(folder: Path, rng: random.Random) -> None:
    files = dict(rng.choice(_plans()))
    name = rng.choice(list(files))
    if name.endswith(".json"):
        values = plain.mutate_values(json.loads(files[name]), rng, rng.choice((1, 1, 2, 4)))
        files[name] = plain.json_text(values, rng)
    else:
        files[name] = protobufs.flip(files[name], rng)
    if rng.random() < 0.05:
        del files[rng.choice(list(files))]
    (folder / "p.plan").mkdir()
    for name, contents in files.items():
        (folder / "p.plan" / name).write_bytes(contents)


def _read_plan(folder: Path, rng: random.Random, told: Told) -> None:
    from onnxprune.plan_inspection import inspect_plan

    inspect_plan(folder / "p.plan")
    plan = load_plan(folder / "p.plan")
    model = ir.serde.deserialize_model(small_models.residual_net(width=4))
    if rng.random() < 0.3:
        told("run")
        onnxprune.apply_plan(model, plan)


@functools.cache
def _records() -> tuple[Any, ...]:
    made = (records.hostile_record(), records.failing_record(), records.bare_record())
    return tuple(json.loads(record.to_text()) for record in made)


def _write_record(folder: Path, rng: random.Random) -> None:
    values = plain.mutate_values(rng.choice(_records()), rng, rng.choice((1, 1, 2, 4)))
    (folder / "record.json").write_bytes(plain.json_text(values, rng))


def _read_record(folder: Path, _rng: random.Random, _told: Told) -> None:
    record: Record = read_record(folder / "record.json")
    record.to_text()
    for draw in (html, markdown, junit):
        text = draw(record)
        if any(ord(character) < 32 and character not in "\n\t" for character in text):
            raise AssertionError(f"{draw.__name__}: control characters")
        if "<script" in text and draw is not markdown:  # there it stands in a span of code
            raise AssertionError(f"{draw.__name__}: markup")


KINDS = {
    "model": Kind(0.64, _write_model, _read_model),
    "data": Kind(0.14, _write_data, _read_data),
    "recipe": Kind(0.1, _write_recipe, _read_recipe),
    "plan": Kind(0.07, _write_plan, _read_plan),
    "record": Kind(0.05, _write_record, _read_record),
}


def kind_of(rng: random.Random) -> str:
    """Draw a kind by its share."""
    return rng.choices(list(KINDS), [kind.share for kind in KINDS.values()])[0]
