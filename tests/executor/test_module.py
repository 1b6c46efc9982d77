"""A model as a torch module: names, copies, types, what is shared, and what errors say."""

from __future__ import annotations

import copy
import pickle
import weakref

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch
from executing import by_runtime, one_node, relative_error
from onnx import parser
from small_models import attention, mlp, residual_net

from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.executor.module import OnnxModule, only_tensors
from onnxprune.model.prepare import prepare
from onnxprune.rewrite.mask import replace_weights

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _model(make=residual_net) -> ir.Model:
    return ir.from_proto(make())


def _text(body: str, opset: int = 17) -> ir.Model:
    return ir.from_proto(parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {body}'))


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_every_inner_value_of_the_prepared_copy_can_be_asked_for():
    model = _model(attention)
    work, _ = prepare(model)
    names = [str(value.name) for node in work.graph for value in node.outputs]
    found = OnnxModule(model)({"x": _x(2, 6, 32)}, also=names)
    assert set(found) == {"y", *names}
    assert all(value is not None for value in found.values())
    with pytest.raises(UsageError, match="has no value 'nothing'"):
        OnnxModule(model)({"x": _x(2, 6, 32)}, also=["nothing"])


def test_trained_values_go_back_into_the_file():
    model = _model()
    module = OnnxModule(model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01)
        expected = module({"x": _x(2, 3, 8, 8)})["y"].numpy()
    replace_weights(model, module.values())
    found = by_runtime(model, {"x": _x(2, 3, 8, 8).numpy()})[0]
    assert relative_error(found, expected) < 1e-5
    before = by_runtime(_model(), {"x": _x(2, 3, 8, 8).numpy()})[0]
    assert relative_error(before, expected) > 1e-3


def test_the_model_is_never_changed_and_what_does_not_train_is_not_copied():
    model = _model(mlp)
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    own = model.graph.initializers["fc2.weight"].const_value = ir.Tensor(
        before["fc2.weight"].copy(), name="w"
    )
    weight = before["fc1.weight"]
    model.graph.initializers["fc1.weight"].const_value = ir.Tensor(weight, name="fc1.weight")
    module = OnnxModule(model, trains=lambda name: name != "fc1.weight")
    assert module.frozen["fc1.weight"] == "it was not chosen"
    assert any(value.data_ptr() == weight.ctypes.data for value in module._program.constants.values())
    torch.optim.SGD(module.parameters(), 0.1).zero_grad()
    module({"x": _x(3, 16)})["y"].sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    assert module.trained["fc2.weight"].data_ptr() != own.numpy().ctypes.data
    for name, array in before.items():
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), array)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])  # noqa: S301
def test_a_copy_has_parameters_of_its_own(copied):
    module = OnnxModule(_model()).train()
    module.trained["fc.bias"].requires_grad_(False)
    with torch.no_grad():
        next(iter(module.parameters())).mul_(2)
    other = copied(module)
    x = {"x": _x(2, 3, 8, 8)}
    assert other.training
    assert not other.trained["fc.bias"].requires_grad
    assert list(other.trained) == list(module.trained)
    assert dict(other.frozen) == dict(module.frozen)
    assert torch.equal(other(x)["y"], module(x)["y"])  # with equal statistics, which both move now
    other.eval(), module.eval()
    with torch.no_grad():
        next(iter(other.parameters())).zero_()
    assert not torch.equal(other(x)["y"], module(x)["y"])


def test_modes_of_copies_are_their_own():
    module = OnnxModule(_model()).eval()
    copy.deepcopy(module).train()
    before = module.values()
    module({"x": _x(4, 3, 8, 8)})
    assert module.values().keys() == before.keys() == module.trained.keys()


def test_values_are_let_go_of_when_nobody_needs_them():
    seen = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            alive.append(sum(value() is not None for value in seen))
            if isinstance(result, torch.Tensor):
                seen.append(weakref.ref(result))
            return result

    alive: list[int] = []
    chain = "\n".join(f"v{i + 1} = Neg(v{i})" for i in range(20))
    module = OnnxModule(_text(f"g (float[n] v0) => (float[n] v20) {{ {chain} }}"))
    with torch.no_grad(), Watched():
        module({"v0": _x(5)})
    assert max(alive) <= 2


def test_parameters_can_be_replaced_from_outside():
    module = OnnxModule(_model(mlp)).eval()
    state = {name: torch.zeros_like(parameter) for name, parameter in module.named_parameters()}
    found = torch.func.functional_call(module, state, ({"x": _x(2, 16)},))
    assert torch.equal(found["y"], torch.zeros(2, 4))


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32", "float64"])
def test_a_model_runs_in_another_precision(precision):
    module = OnnxModule(_model(), precision=precision).eval()
    found = module({"x": _x(2, 3, 8, 8)})["y"]
    assert found.dtype == getattr(torch, precision)
    expected = OnnxModule(_model()).eval()({"x": _x(2, 3, 8, 8)})["y"]
    error = relative_error(found.detach().double().numpy(), expected.detach().numpy())
    assert error < {"bfloat16": 5e-2, "float16": 5e-3}.get(precision, 1e-5)
    assert all(array.dtype == np.float32 for array in module.values().values())


@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16", "DOUBLE"])
def test_weights_of_other_types_train_in_their_type(dtype):
    wanted = ir.DataType[dtype]
    x, w = np.ones((2, 3)), np.arange(12).reshape(3, 4) / 7
    model = ir.from_proto(
        one_node("MatMul", {"x": x.astype(np.float32)}, constants={"w": w.astype(np.float32)})
    )
    model.graph.initializers["w"].const_value = ir.Tensor(w.astype(wanted.numpy()), dtype=wanted, name="w")
    model.graph.inputs[0].type = ir.TensorType(wanted)
    module = OnnxModule(model)
    (y,) = module({"x": torch.ones(2, 3)}).values()
    y.sum().backward()
    assert module.trained["w"].grad.dtype == y.dtype == module.trained["w"].dtype
    stored = module.values()["w"]
    assert stored.dtype == wanted.numpy()
    np.testing.assert_array_equal(stored, w.astype(wanted.numpy()))


def test_constants_of_constant_nodes_train_under_the_name_of_the_output():
    model = _text("""g (float[n, 2] x) => (float[n, 2] y) {
        w = Constant <value = float[2, 2] {1.0, 2.0, 3.0, 4.0}> ()
        y = MatMul(x, w)
    }""")
    module = OnnxModule(model)
    assert list(module.trained) == ["w"]
    with torch.no_grad():
        module.trained["w"].mul_(2)
    replace_weights(model, module.values())
    assert by_runtime(model, {"x": np.ones((1, 2), np.float32)})[0].tolist() == [[8.0, 12.0]]


@pytest.mark.parametrize("returned", ["w", "Identity", "Transpose"])
def test_an_output_that_is_a_weight_follows_what_is_trained(returned):
    output, copy = ("w", "") if returned == "w" else ("out", f"out = {returned}(w)")
    model = _text(f"""g (float[n, 2] x) => (float[n, 2] y, float[2, 2] {output})
    <float[2, 2] w = {{0.5, 1.7, 2.2, 3.1}}> {{ {copy} y = MatMul(x, w) }}""")
    module = OnnxModule(model)
    assert list(module.trained) == ["w"]
    assert not module.frozen
    with torch.no_grad():
        module.trained["w"].mul_(2)
        found = module({"x": torch.ones(1, 2)})
    replace_weights(model, module.values())
    expected = by_runtime(model, {"x": np.ones((1, 2), np.float32)})
    for name, array in zip(module.outputs, expected, strict=True):
        np.testing.assert_allclose(found[name].detach().numpy(), array, rtol=1e-6)


def test_numbers_that_are_attributes_of_a_node_do_not_train():
    model = _text("""g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] v = {0.1, 0.2, 0.3, 0.4}> {
        w = Constant <value_floats = [0.5, 1.5]> ()
        mean = Constant <value_floats = [0.0, 0.1]> ()
        variance = Constant <value_floats = [1.0, 1.1]> ()
        a = MatMul(x, v)
        y = BatchNormalization(a, w, w, mean, variance)
    }""")
    module = OnnxModule(model)
    assert list(module.trained) == list(module.values()) == ["v"]
    assert {module.frozen[name] for name in ("w", "mean", "variance")} == {
        "the file holds no tensor of that name: its numbers are an attribute of a node"
    }


def test_outputs_that_are_no_tensors_are_given_and_can_be_left_out():
    model = _text("""g (float[n, 2] x) => (float[n, 2] y, seq(float[n, 2]) s) {
        y = Relu(x) s = SequenceConstruct(x, y)
    }""")
    module = OnnxModule(model)
    assert module.outputs == ("y", "s")
    found = module({"x": torch.ones(1, 2)}, also=["s"])
    assert [value.tolist() for value in found["s"]] == [[[1, 1]], [[1, 1]]]
    assert list(only_tensors(found)) == ["y"]


def test_defaults_of_inputs_can_be_given_anew():
    model = _text("""g (float[n] x, float s) => (float[n] y) <float s = {2.0}> { y = Mul(x, s) }""")
    module = OnnxModule(model)
    assert module.inputs == ("x",)
    assert module({"x": torch.ones(2)})["y"].tolist() == [2, 2]
    assert module({"x": torch.ones(2), "s": torch.tensor(3.0)})["y"].tolist() == [3, 3]


def test_errors_are_one_line():
    module = OnnxModule(_model(mlp))
    with pytest.raises(DataError, match="input 'x' is missing; the model takes x"):
        module({})
    with pytest.raises(DataError, match="no input 'z'"):
        module({"x": _x(1, 16), "z": _x(1)})
    with pytest.raises(DataError, match=r"holds torch.int64, the model takes torch.float32"):
        module({"x": torch.ones(1, 16, dtype=torch.int64)})
    with pytest.raises(ModelError, match="can't run on these inputs: ") as caught:
        module({"x": _x(1, 15)})
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="unknown precision 'float8'"):
        OnnxModule(_model(mlp), precision="float8")
    with pytest.raises(UsageError, match="can't be used"):
        OnnxModule(_model(mlp), device="nowhere")


def test_operators_without_a_meaning_are_named():
    model = _text("""g (float[n] x) => (float[n] y) {
        a = Unheard(x) b = Unheard(a) y = Relu(b)
    }""")
    with pytest.raises(ModelError, match=r"no torch meaning yet for Unheard \(2 nodes\)"):
        OnnxModule(model)


def test_sizes_stay_in_main_memory():
    """The arithmetic of a computed Reshape, on a device that holds no numbers: reading one would raise."""
    model = _text("""g (float[n, 4, 6] x) => (float[n, 24] y) <int64[1] z = {0}, int64[1] minus = {-1}> {
        s = Shape(x) b = Gather(s, z) t = Concat <axis = 0> (b, minus) e = Exp(x) y = Reshape(e, t)
    }""")
    module = OnnxModule(model, device="meta")
    assert module({"x": torch.empty(5, 4, 6, device="meta")})["y"].shape == (5, 24)


def _one_process(rank: int, folder: str, results) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    module = torch.nn.parallel.DistributedDataParallel(OnnxModule(_model(mlp)))
    x = _x(4, 16)[2 * rank : 2 * rank + 2]
    module({"x": x})["y"].square().mean().backward()
    results[rank] = {name: value.grad.numpy() for name, value in module.module.trained.items()}
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_two_processes_share_a_batch(tmp_path):
    whole = OnnxModule(_model(mlp))
    whole({"x": _x(4, 16)})["y"].square().mean().backward()
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_one_process, (str(tmp_path), results), nprocs=2)
        for rank in (0, 1):
            for name, parameter in whole.trained.items():
                np.testing.assert_allclose(results[rank][name], parameter.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_a_static_network_can_be_compiled():
    module = OnnxModule(_model()).eval()
    x = {"x": _x(2, 3, 8, 8)}
    compiled = torch.compile(module, dynamic=False, backend="aot_eager")
    found, expected = compiled(x)["y"], module(x)["y"]
    assert relative_error(found.detach().numpy(), expected.detach().numpy()) < 1e-5


@needs_cuda
@pytest.mark.parametrize("make", [residual_net, attention, mlp])
def test_an_accelerator_computes_the_same(make):
    here, there = OnnxModule(_model(make)), OnnxModule(_model(make), device="cuda")
    moved = copy.deepcopy(here).to("cuda")
    x = {"x": _x(2, *here._model.graph.inputs[0].shape[1:])}
    expected = here(x)["y"]
    expected.square().sum().backward()
    with torch.backends.cudnn.flags(allow_tf32=False):
        for module in (there, moved):
            found = module({"x": x["x"].cuda()})["y"]
            assert found.is_cuda
            assert relative_error(found.detach().cpu().numpy(), expected.detach().numpy()) < 1e-5
            found.square().sum().backward()
            for name, parameter in module.trained.items():
                wanted = here.trained[name].grad.numpy()
                assert relative_error(parameter.grad.cpu().numpy(), wanted) < 1e-4


def test_a_table_of_texts_has_no_meaning_and_that_is_said():
    model = _text("""g (int64[n] i) => (string[n] y) <string[2] t = {"a", "b"}> { y = Gather(t, i) }""")
    with pytest.raises(ModelError, match="no torch meaning yet for Gather"):
        OnnxModule(model)
