from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune.allocate.masks import choose_masks
from onnxprune.errors import RunTooLong
from onnxprune.model.digest import structure_digest
from onnxprune.model.io import load, save
from onnxprune.ops.weights import find_weights
from onnxprune.rewrite.mask import apply_masks
from onnxprune.scores.weights import WEIGHT_SCORERS
from onnxprune.types import Check, Cost, Mask, Plan, PlannedGroup, PlannedMember, Report
from onnxprune.verification import running, verify, verify_and_keep

FLOAT = TensorProto.FLOAT


def normal(*shape: int, seed: int = 0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def write(
    path: Path, nodes: list[Any], arrays: Mapping[str, Any], inputs: Any, outputs: Any, **options: Any
) -> Path:
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    values = [
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in group]
        for group in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "g", values[0], values[1], initializers)
    imports = [helper.make_opsetid("", options.pop("opset", 18))]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), str(path), **options)
    return path


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A convolution with batch norm, and a classifier of two layers: one weight transposed, one not."""
    nodes = [
        helper.make_node("Conv", ["image", "conv"], ["c"], name="conv_node", pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["b"], name="norm"
        ),
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "hidden", "bias"], ["h"], name="hidden_node", transB=1),
        helper.make_node("MatMul", ["h", "head"], ["scores"], name="head_node"),
    ]
    arrays = {
        "conv": normal(16, 8, 3, 3),
        "scale": np.ones(16, np.float32), "shift": np.zeros(16, np.float32),
        "mean": np.zeros(16, np.float32), "variance": np.ones(16, np.float32),
        "hidden": normal(24, 16), "bias": np.zeros(24, np.float32), "head": normal(24, 4),
    }  # fmt: skip
    return write(
        tmp_path / "original.onnx", nodes, arrays, [("image", ["n", 8, 6, 6])], [("scores", ["n", 4])]
    )


def make_plan(pattern: str, masks: Mapping[str, Mask], groups: tuple[PlannedGroup, ...] = ()) -> Plan:
    cost = Cost(0, 0, 0)
    return Plan(pattern, "", "", groups, masks, {}, (cost, cost), 0, {})


def prune(source: Path, pattern: str, amount: float | None = None, **options: Any) -> tuple[Path, Plan]:
    model = load(source)
    uses, _ = find_weights(model)
    masks, _ = choose_masks(model, uses, pattern=pattern, amount=amount, scorer=WEIGHT_SCORERS.get("l1"))
    apply_masks(model, masks)
    target = source.parent / "pruned.onnx"
    save(model, target, **options)
    return target, make_plan(pattern, masks)


def change(path: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(str(path))
    edit(model)
    onnx.save(model, str(path))


def edit_array(name: str, edit: Callable[[Any], None]) -> Callable[[onnx.ModelProto], None]:
    def edit_model(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        array = numpy_helper.to_array(tensor).copy()
        edit(array)
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return edit_model


def failed(report: Report) -> Check:
    """Return the only failed check; its detail is one line."""
    assert not report.passed
    (check,) = [check for check in report.checks if not check.passed]
    assert "\n" not in check.detail
    assert check.detail
    return check


# --- files that are what they claim to be -----------------------------------------------------------------


@pytest.mark.parametrize(("pattern", "amount"), [("unstructured", 0.5), ("2:4", None), ("block:2x4", 0.5)])
@pytest.mark.parametrize("external", [False, True])
def test_a_pruned_file_passes(original: Path, pattern: str, amount: float | None, external: bool) -> None:
    pruned, plan = prune(original, pattern, amount, external_data=external)
    report = verify(pruned, against=original, plan=plan)
    assert report.passed, [check for check in report.checks if not check.passed]
    rows = {row["tensor"]: row for row in report.sections["weights"]}
    assert set(rows) == {"conv", "hidden", "head"}
    for name, row in rows.items():
        assert row["zeros"] == plan.masks[name].size - plan.masks[name].kept
        assert row["survives"] == row["zeros"]
    if pattern == "2:4":
        assert {row["pattern"] for row in rows.values()} == {"2:4"}
        assert {name: row["summed_axis"] for name, row in rows.items()} == {"conv": 1, "hidden": 1, "head": 0}
    names = [check.name for check in report.checks]
    assert {"loads", "onnx checker", "interface", "declared zeros", "outputs finite"} <= set(names)
    assert set(report.seconds) >= set(names)


@pytest.mark.parametrize("external", [False, True])
def test_sparse_storage_passes(original: Path, external: bool) -> None:
    pruned, plan = prune(original, "unstructured", 0.9, sparse_storage=True, external_data=external)
    assert onnx.load(str(pruned), load_external_data=False).graph.sparse_initializer
    report = verify(pruned, against=original, plan=plan)
    assert report.passed, [check for check in report.checks if not check.passed]


def test_without_plan_and_original_the_patterns_are_reported(original: Path) -> None:
    pruned, _ = prune(original, "2:4")
    report = verify(pruned)
    assert report.passed
    assert [row["pattern"] for row in report.sections["weights"]] == ["2:4"] * 3
    assert report.sections["file"]["zeros"] * 2 == report.sections["file"]["weights"]
    dense = verify(original)
    assert dense.passed
    assert [row["pattern"] for row in dense.sections["weights"]] == ["dense"] * 3


# --- zeros ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_a_zero_that_was_removed(original: Path, pattern: str) -> None:
    pruned, plan = prune(original, pattern, 0.5)
    row, column = np.argwhere(~plan.masks["hidden"].unpack())[7]

    def edit(array: Any) -> None:
        array[row, column] = 1e-30

    change(pruned, edit_array("hidden", edit))
    report = verify(pruned, plan=plan)
    check = next(check for check in report.checks if not check.passed)
    assert check.name == "declared zeros"
    assert (
        check.detail
        == f"'hidden': 1 weights that the plan makes zero are not, the first at [{row}, {column}]"
    )


def test_a_zero_that_was_planted(original: Path) -> None:
    pruned, plan = prune(original, "2:4")
    index = [int(position) for position in np.argwhere(plan.masks["conv"].unpack())[3]]

    def edit(array: Any) -> None:
        array[tuple(index)] = 0

    change(pruned, edit_array("conv", edit))
    check = failed(verify(pruned, against=original, plan=plan))
    assert check.name == "other weights unchanged"
    assert check.detail == f"'conv' was changed outside its mask at {index}"


def test_a_weight_that_no_mask_covers_was_changed(original: Path) -> None:
    pruned, plan = prune(original, "2:4")

    def edit(array: Any) -> None:
        array[5] = np.nextafter(np.float32(0), np.float32(1))

    change(pruned, edit_array("bias", edit))
    assert failed(verify(pruned, against=original, plan=plan)).detail == "'bias' was changed at [5]"


def test_a_sign_of_zero_counts_as_a_change(original: Path) -> None:
    pruned, plan = prune(original, "2:4")

    def edit(array: Any) -> None:
        array[0] = -0.0

    change(pruned, edit_array("bias", edit))
    assert failed(verify(pruned, against=original, plan=plan)).name == "other weights unchanged"


def test_a_pattern_along_the_wrong_axis(original: Path) -> None:
    _, plan = prune(original, "2:4")
    model = load(original)
    mask = np.ones((24, 16), dtype=bool)
    mask[(np.arange(24) % 4) < 2] = False  # runs go along axis 0, the outputs
    masks = {**plan.masks, "hidden": Mask.pack(mask)}
    apply_masks(model, masks)
    save(model, original.parent / "pruned.onnx")
    check = failed(verify(original.parent / "pruned.onnx", against=original, plan=make_plan("2:4", masks)))
    assert check.name == "pattern 2:4"
    assert "'hidden', used by hidden_node" in check.detail
    assert "along axis 1 keep more than 2" in check.detail


def test_the_axis_is_that_of_the_file_not_of_the_plan(original: Path) -> None:
    """The same tensor, but the node now reads it the other way round."""
    square = {"square": normal(16, 16)}
    nodes = [helper.make_node("Gemm", ["x", "square"], ["y"], name="layer", transB=1)]
    source = write(original.parent / "square.onnx", nodes, square, [("x", ["n", 16])], [("y", ["n", 16])])
    pruned, plan = prune(source, "2:4")

    def edit(model: onnx.ModelProto) -> None:
        model.graph.node[0].attribute[0].i = 0

    change(pruned, edit)
    (check,) = [check for check in verify(pruned, plan=plan).checks if not check.passed]
    assert check.name == "pattern 2:4"
    assert "along axis 0" in check.detail
    checks = verify(pruned, against=source, plan=plan).checks
    assert [check.name for check in checks if not check.passed] == ["graph unchanged", "pattern 2:4"]


def two_layers(folder: Path) -> Path:
    nodes = [
        helper.make_node("Gemm", ["x", "first", "bias_1"], ["h"], name="first_node"),
        helper.make_node("Gemm", ["h", "second", "bias_2"], ["y"], name="second_node"),
    ]
    arrays = {
        "first": normal(8, 8),
        "bias_1": normal(8),
        "second": normal(8, 8, seed=1),
        "bias_2": normal(8, seed=1),
    }
    return write(folder / "two.onnx", nodes, arrays, [("x", ["n", 8])], [("y", ["n", 8])])


def test_a_bias_that_came_to_be_shared(tmp_path: Path) -> None:
    source = two_layers(tmp_path)
    pruned, plan = prune(source, "2:4")
    plan = replace(plan, structure_digest=structure_digest(load(source)))
    assert verify(pruned, plan=plan).passed

    def share(model: onnx.ModelProto) -> None:
        model.graph.node[1].input[2] = "bias_1"
        del model.graph.initializer[3]

    change(pruned, share)
    check = failed(verify(pruned, against=source, plan=plan))
    assert check.name == "graph unchanged"
    assert check.detail == (
        "second_node is Gemm(h, second, bias_1); in the original it is Gemm(h, second, bias_2)"
    )
    assert failed(verify(pruned, plan=plan)).name == "graph unchanged"


def test_biases_that_changed_places(tmp_path: Path) -> None:
    source = two_layers(tmp_path)
    pruned, plan = prune(source, "2:4")

    def swap(model: onnx.ModelProto) -> None:
        model.graph.node[0].input[2], model.graph.node[1].input[2] = "bias_2", "bias_1"

    change(pruned, swap)
    assert failed(verify(pruned, against=source, plan=plan)).name == "graph unchanged"


def test_an_attribute_that_changed(original: Path) -> None:
    pruned, plan = prune(original, "2:4")

    def edit(model: onnx.ModelProto) -> None:
        model.graph.node[5].attribute.append(helper.make_attribute("alpha", 2.0))

    change(pruned, edit)
    assert failed(verify(pruned, against=original, plan=plan)).name == "graph unchanged"


def test_blocks_that_are_not_whole(original: Path) -> None:
    pruned, plan = prune(original, "block:2x4", 0.5)
    shifted = {name: Mask.pack(np.roll(mask.unpack(), 1, axis=1)) for name, mask in plan.masks.items()}
    report = verify(pruned, plan=replace(plan, masks=shifted))
    assert {check.name for check in report.checks if not check.passed} >= {
        "pattern block:2x4",
        "declared zeros",
    }


def test_a_masked_tensor_that_is_gone_or_has_another_shape(original: Path) -> None:
    pruned, plan = prune(original, "2:4")
    gone = make_plan("2:4", {"elsewhere": plan.masks["conv"]})
    assert [c.detail for c in verify(pruned, plan=gone).checks if not c.passed] == [
        "'elsewhere' is masked by the plan; the file has no tensor of that name",
        "'elsewhere': no consumer that sums over it was found",
    ]
    other = make_plan("2:4", {"conv": plan.masks["head"]})
    report = verify(pruned, plan=other)
    assert "'conv' has shape [16, 8, 3, 3], the plan's mask [24, 4]" in [
        check.detail for check in report.checks
    ]


# --- the container ----------------------------------------------------------------------------------------


def test_a_lost_data_file(original: Path) -> None:
    pruned, plan = prune(original, "2:4", external_data=True)
    (data,) = original.parent.glob("pruned.onnx.*")
    data.unlink()
    check = failed(verify(pruned, against=original, plan=plan))
    assert check.name == "loads"
    assert "missing" in check.detail


def test_a_data_file_that_was_cut_short(original: Path) -> None:
    pruned, _ = prune(original, "2:4", external_data=True)
    (data,) = original.parent.glob("pruned.onnx.*")
    data.write_bytes(data.read_bytes()[:-8])
    assert failed(verify(pruned)).name == "loads"


@pytest.mark.parametrize("contents", [b"", b"not a model", b"\x08\x09"])
def test_files_that_are_no_models(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(contents)
    assert failed(verify(tmp_path / "m.onnx")).name == "loads"
    assert failed(verify(tmp_path / "elsewhere.onnx")).name == "loads"


def test_an_original_that_does_not_load(original: Path, tmp_path: Path) -> None:
    assert failed(verify(original, against=tmp_path / "elsewhere.onnx")).name == "original loads"


def test_what_the_checker_refuses(original: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.name = ""

    change(original, edit)
    report = verify(original, optimize=False)
    check = next(check for check in report.checks if check.name == "onnx checker")
    assert not check.passed
    assert "name" in check.detail
    same = verify(original, against=original, optimize=False)
    assert next(check for check in same.checks if check.name == "onnx checker").passed


def test_only_passed_checks_of_other_libraries_are_taken_over(original: Path) -> None:
    made = [
        Check("onnx checker", True, "known"),
        Check("outputs finite", False, "known"),
        Check("file size", True, "known"),
    ]
    report, models = verify_and_keep(original, original, input_shapes=None, known=made)
    details = {check.name: check.detail for check in report.checks}
    assert report.passed
    assert details["onnx checker"] == "known"
    assert "known" not in (details["outputs finite"], details["file size"])
    assert [model.graph.name for model in models] == [load(original).graph.name] * 2


def test_a_checker_that_crashes_is_a_failed_check(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.verification.container._CHECKER", "import os; os.abort()")
    check = failed(verify(original))
    assert check.name == "onnx checker"
    assert "did not come back: a native library crashed (SIGABRT)" in check.detail


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "picture"


def fix_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def change_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"


@pytest.mark.parametrize(
    ("edit", "detail"),
    [
        (rename_input, "inputs were image; they are picture"),
        (fix_batch, "input 'image' was ['n', 8, 6, 6], is [1, 8, 6, 6]"),
        (change_output, "output 'scores' was ['n', 4], is ['n', 'classes']"),
    ],
)
def test_a_changed_interface(original: Path, edit: Callable[[onnx.ModelProto], None], detail: str) -> None:
    pruned, _ = prune(original, "2:4")
    change(pruned, edit)
    check = failed(verify(pruned, against=original))
    assert (check.name, check.detail) == ("interface", detail)


def test_where_nothing_was_declared_outputs_may_say_more_but_inputs_may_not(original: Path) -> None:
    def forget(values: Any) -> Callable[[onnx.ModelProto], None]:
        def edit(model: onnx.ModelProto) -> None:
            dim = getattr(model.graph, values)[0].type.tensor_type.shape.dim[0]
            dim.ClearField("dim_param")

        return edit

    pruned, _ = prune(original, "2:4")
    change(original, forget("output"))
    assert verify(pruned, against=original).passed
    change(original, forget("input"))
    assert failed(verify(pruned, against=original)).name == "interface"


def test_a_weight_that_nothing_reads(original: Path) -> None:
    pruned, _ = prune(original, "2:4")

    def edit(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(normal(3), "left_over"))

    change(pruned, edit)
    check = failed(verify(pruned, against=original))
    assert (check.name, check.detail) == ("no unused weights", "'left_over' is stored and read by nothing")
    assert verify(pruned, against=pruned).passed  # the original had it as well


def test_a_file_that_grew(original: Path) -> None:
    pruned, plan = prune(original, "2:4")

    def edit(model: onnx.ModelProto) -> None:
        model.doc_string = "x" * 100_000

    change(pruned, edit)
    assert failed(verify(pruned, against=original, plan=plan)).name == "file size"


def test_a_data_file_with_more_than_its_tensors(original: Path) -> None:
    pruned, _ = prune(original, "2:4", external_data=True)
    (data,) = original.parent.glob("pruned.onnx.*")
    data.write_bytes(data.read_bytes() + bytes(1 << 20))
    check = failed(verify(pruned))
    assert check.name == "file size"
    assert check.detail.startswith(f"{data.name} has ")


# --- running ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers(original: Path, value: float) -> None:
    def edit(array: Any) -> None:
        array[0] = value

    change(original, edit_array("head", edit))
    check = failed(verify(original))
    assert (check.name, check.detail) == (
        "outputs finite",
        "output 'scores' is not finite on random inputs (seed 0)",
    )
    assert verify(original, against=original).passed  # the original does the same


def test_a_model_that_the_runtime_refuses(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, {"w": normal(5, 4)}, [("x", [2, 8])], [("y", [2, 4])])
    report = verify(path)
    assert not next(check for check in report.checks if check.name == "outputs finite").passed


def finite(report: Report) -> Check:
    (check,) = (one for one in report.checks if one.name == "outputs finite")
    return check


def test_where_no_input_is_taken_it_is_said_that_nothing_was_checked(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "flat"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    arrays = {"flat": np.array([0, 28]), "w": np.ones((28, 8), np.float32)}
    path = write(tmp_path / "m.onnx", nodes, arrays, [("x", ["n", "time", 4])], [("y", ["n", 8])])
    assert finite(verify(path, against=path)).detail.startswith("not checked, on no input; of shapes")
    assert not finite(verify(path)).passed
    sevens = verify(path, against=path, input_shapes={"x": [2, 7, 4]})
    assert finite(sevens).detail.startswith("on 4 random inputs")


def test_after_a_long_run_there_is_no_other(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert finite(verify(original)).detail.startswith("on 4 random inputs")
    monkeypatch.setattr(running, "_LONG_RUN_SECONDS", -1.0)
    check = finite(verify(original))
    assert check.passed
    assert check.detail.startswith("on 1 random input; not on more, because a run takes")


def test_a_run_that_is_ended_is_not_tried_on_the_original(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> Any:
        raise RunTooLong("a run took longer than 30 s")

    monkeypatch.setattr(runtime.Session, "run", run)
    monkeypatch.setattr(running, "_answer", lambda *_: pytest.fail("the original was run"))
    check = finite(verify(original, against=original))
    assert (check.passed, check.detail) == (False, "a run took longer than 30 s")


@pytest.mark.parametrize("limit", [1000, 0])
def test_models_above_the_limit_are_not_run_and_it_is_said(
    original: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    ran: list[object] = []
    monkeypatch.setattr(
        "onnxprune.verification.report.check_outputs_finite", lambda *given: ran.append(given)
    )
    pruned, plan = prune(original, "2:4")
    report = verify(pruned, against=original, plan=plan, runtime_limit_bytes=limit)
    assert report.passed
    assert not ran
    assert [entry.name for entry in report.skipped] == ["checks that run the model"]
    assert not {"outputs finite", "zeros survive ONNX Runtime"} & {check.name for check in report.checks}


# --- what the runtime makes of it -------------------------------------------------------------------------


def tamper_with_optimized(monkeypatch: pytest.MonkeyPatch, edit: Callable[[str, Any], Any]) -> None:
    """Let ONNX Runtime's optimizer hand over weights that ``edit`` (name, array) has changed."""
    real = runtime.save_optimized

    def save_tampered(model: Any, out_path: Path, level: Any) -> None:
        real(model, out_path, level)
        proto = onnx.load(str(out_path))
        for tensor in proto.graph.initializer:
            array = edit(tensor.name, numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), tensor.name))
        onnx.save(proto, str(out_path))

    monkeypatch.setattr(runtime, "save_optimized", save_tampered)


def test_zeros_that_the_runtime_loses(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned, plan = prune(original, "2:4")

    def fill_some(_: str, array: Any) -> Any:
        if array.ndim == 4:
            first = np.argwhere(array == 0)[:5]
            array[tuple(first.T)] = 1
        return array

    tamper_with_optimized(monkeypatch, fill_some)
    check = failed(verify(pruned, plan=plan))
    assert (check.name, check.detail) == (
        "zeros survive ONNX Runtime",
        "'conv', used by conv_node: 5 of 576 zeros are lost",
    )
    row = next(row for row in verify(pruned).sections["weights"] if row["tensor"] == "conv")
    assert (row["zeros"], row["survives"]) == (576, 571)


def test_zeros_elsewhere_do_not_make_up_for_lost_ones(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned, plan = prune(original, "2:4")

    def move_zeros(_: str, array: Any) -> Any:
        return np.roll(array, 1, axis=0) if array.ndim == 4 else array

    tamper_with_optimized(monkeypatch, move_zeros)
    kept = plan.masks["conv"].unpack()
    lost = np.count_nonzero(~kept & np.roll(kept, 1, axis=0))
    assert failed(verify(pruned, plan=plan)).detail.endswith(f"conv_node: {lost} of 576 zeros are lost")


def test_more_zeros_than_before_are_no_loss(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned, plan = prune(original, "2:4")

    def drop_a_channel(_: str, array: Any) -> Any:
        if array.ndim == 4:
            array[3] = 0  # a batch norm that multiplies by zero
        return array

    tamper_with_optimized(monkeypatch, drop_a_channel)
    assert verify(pruned, plan=plan).passed


def test_batch_norm_is_fused_where_zeros_are_looked_for(original: Path, tmp_path: Path) -> None:
    """Were nothing fused, the tests above would prove little."""
    runtime.save_optimized(original, tmp_path / "optimized.onnx", "extended")
    proto = onnx.load(str(tmp_path / "optimized.onnx"))
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert "conv" not in {tensor.name for tensor in proto.graph.initializer}


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, 0), (np.uint8, 128), (np.uint8, "per output")])
def test_zeros_of_quantized_weights_are_zero_points(tmp_path: Path, dtype: Any, zero: Any) -> None:
    generator = np.random.default_rng(0)
    kept = np.tile([True, False, False, True], (8, 4)).T  # [16, 8], 2:4 along axis 0
    offset = np.array([100 + k for k in range(8)] if zero == "per output" else zero).astype(dtype)
    shift = generator.integers(1, 20, (16, 8))
    stored = np.where(kept, offset.astype(int) + shift, offset).astype(dtype)
    scale = np.full(offset.shape, 0.1, np.float32)
    arrays = {"w": stored, "s": scale, "z": offset, "xs": np.float32(0.05), "xz": np.uint8(128)}
    arrays |= {"ys": np.float32(0.2), "yz": np.uint8(128)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["m"], name="layer"),
        helper.make_node("QuantizeLinear", ["m", "ys", "yz"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "ys", "yz"], ["y"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, arrays, [("x", [2, 16])], [("y", [2, 8])])
    runtime.save_optimized(path, tmp_path / "optimized.onnx", "extended")
    optimized = {node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node}
    assert "MatMul" not in optimized  # it became an integer operator
    report = verify(path)
    assert report.passed, report.checks
    (row,) = report.sections["weights"]
    assert (row["zeros"], row["pattern"], row["survives"]) == (64, "2:4", 64)


def test_weights_that_were_joined_or_transposed_are_found(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As attention fusion does with query, key and value, and Gemm fusion with a weight."""
    folder = original.parent
    nodes = [
        helper.make_node("MatMul", ["x", name], [f"{name}y"], name=f"{name}_node") for name in ("q", "k", "v")
    ]
    arrays = {name: normal(8, 12, seed=seed) for seed, name in enumerate(("q", "k", "v"))}
    outputs = [(f"{name}y", ["n", 12]) for name in arrays]
    pruned, plan = prune(
        write(folder / "qkv.onnx", nodes, arrays, [("x", ["n", 8])], outputs), "unstructured", 0.5
    )
    masked = {name: np.where(mask.unpack(), arrays[name], 0) * 3 for name, mask in plan.masks.items()}

    def joined(_model: Any, out_path: Path, _level: Any) -> None:
        node = helper.make_node("MatMul", ["x", "qkv"], ["qkvy"])
        turned = helper.make_node("Gemm", ["x", "vt"], ["vy"], transB=1)
        both = {"qkv": np.concatenate([masked["q"], masked["k"]], axis=1), "vt": masked["v"].T.copy()}
        write(out_path, [node, turned], both, [("x", ["n", 8])], [("qkvy", None), ("vy", None)])

    monkeypatch.setattr(runtime, "save_optimized", joined)
    report = verify(pruned, plan=plan)
    assert report.passed, report.checks

    masked["k"][:, 3] = 1
    assert failed(verify(pruned, plan=plan)).detail == "'k': no weight of the optimized graph has its zeros"


def test_half_precision_is_followed(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 8])],
        [numpy_helper.from_array(normal(8, 8).astype(np.float16), "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        tmp_path / "m.onnx",
    )
    pruned, plan = prune(tmp_path / "m.onnx", "2:4")
    report = verify(pruned, against=tmp_path / "m.onnx", plan=plan)
    assert report.passed, report.checks
    assert report.sections["weights"][0]["survives"] == 32


# --- structured plans -------------------------------------------------------------------------------------


def cut_plan() -> Plan:
    """Channels 1 and 5 of the convolution go."""
    gone = np.array([1, 5], dtype=np.int32)
    members = [("conv", 0, 16, "conv_node", False), ("hidden", 1, 16, "hidden_node", True)]
    members += [(name, 0, 16, "norm", False) for name in ("scale", "shift", "mean", "variance")]
    planned = tuple(PlannedMember(*member, gone) for member in members)
    return make_plan("channels", {}, (PlannedGroup("conv", "channels", 16, gone, planned),))


def cut_file(source: Path, lengths: Mapping[str, int]) -> Path:
    """Cut a number of positions from each tensor, axis 0 (of hidden: axis 1)."""
    model = onnx.load(str(source))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        axis = 1 if tensor.name == "hidden" else 0
        cut = np.delete(array, np.arange(lengths.get(tensor.name, 0)), axis=axis)
        tensor.CopyFrom(numpy_helper.from_array(cut, tensor.name))
    onnx.save(model, str(source.parent / "cut.onnx"))
    return source.parent / "cut.onnx"


CUT = {"conv": 2, "hidden": 2, "scale": 2, "shift": 2, "mean": 2, "variance": 2}


def test_a_cut_file_has_the_planned_shapes(original: Path) -> None:
    report = verify(cut_file(original, CUT), against=original, plan=cut_plan())
    assert report.passed, report.checks
    check = next(check for check in report.checks if check.name == "planned shapes")
    assert check.detail == "6 tensors have their planned shapes; 2 channels are gone"


def test_a_cut_of_another_size(original: Path) -> None:
    wrong = dict.fromkeys(CUT, 3)
    check = failed(verify(cut_file(original, wrong), against=original, plan=cut_plan()))
    assert check.name == "planned shapes"
    assert check.detail == "'conv', read by conv_node: [13, 8, 3, 3], but axis 0 should have 14"


def test_a_cut_whose_consumer_is_gone(original: Path) -> None:
    path = cut_file(original, CUT)

    def edit(model: onnx.ModelProto) -> None:
        model.graph.node[5].name = "renamed"

    change(path, edit)
    check = failed(verify(path, against=original, plan=cut_plan()))
    assert check.detail == "'hidden': the file has no node 'hidden_node' that reads it"


def test_planned_shapes_are_checked_without_the_original(original: Path) -> None:
    report = verify(cut_file(original, CUT), plan=cut_plan())
    assert report.passed, report.checks
    wrong = verify(cut_file(original, CUT | {"mean": 1}), plan=cut_plan())
    assert "planned shapes" in [check.name for check in wrong.checks if not check.passed]


def test_a_tensor_that_was_unshared_is_found_under_its_new_name(original: Path) -> None:
    path = cut_file(original, CUT)

    def edit(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == "scale":
                tensor.name = "scale_2"
        model.graph.node[1].input[1] = "scale_2"

    change(path, edit)
    assert verify(path, against=original, plan=cut_plan()).passed


def test_an_input_without_a_rank_has_that_which_the_original_takes(tmp_path):
    arrays, ends = {"w": normal(4, 3)}, ([("x", None)], [("y", None)])
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    original = write(tmp_path / "original.onnx", [product], arrays, *ends)
    narrow = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["back"], to=FLOAT),
        helper.make_node("MatMul", ["back", "w"], ["y"]),
    ]
    changed = write(tmp_path / "changed.onnx", narrow, arrays, *ends)
    assert finite(verify(changed, against=original)).passed
    assert "has no rank" in finite(verify(changed)).detail
