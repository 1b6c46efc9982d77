"""An ONNX model as a torch module: its weights are parameters, and go back into the file by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.executor.parameters import TRAINED_TYPES, Tensors, sort_tensors
from onnxprune.executor.program import build_program, run_steps
from onnxprune.messages import one_line, quoted
from onnxprune.model.inputs import graph_inputs
from onnxprune.model.prepare import written_out
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.ops.meanings.base import Mode, NoMeaning, torch_dtype
from onnxprune.ops.meanings.stored import as_stored, as_torch

#: Precisions by name.
PRECISIONS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def only_tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Leave out what has neither a gradient nor a distance from another: sequences, say."""
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class OnnxModule(torch.nn.Module):
    """Runs a model in torch, with gradients.

    Args:
        model: not changed. Its tensors are shared where they do not train.
        device: where it runs.
        precision: "float16", "bfloat16", "float32" or "float64": what stands for the element type that most
            of its weights have, and for every narrower one. None: types as they are stored.
        trains: is asked for each stored tensor that would train whether it does.

    Attributes:
        inputs: names of the inputs that must be given.
        outputs: names of the outputs.
        trained: parameters by stored name (that of an initializer, or of the output of a Constant node).
        frozen: float tensors that do not train, by stored name, with the reason.

    Raises:
        ModelError: operators have no torch meaning; the message names them.
        UsageError: there is no such precision or device.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        device: str | torch.device = "cpu",
        precision: str | None = None,
        trains: Callable[[str], bool] | None = None,
    ) -> None:
        super().__init__()
        if precision is not None and precision not in PRECISIONS:
            raise UsageError(f"unknown precision {quoted(precision)}; known: {', '.join(PRECISIONS)}")
        self._device = _checked_device(device)
        self._model = written_out(model)
        self._dtypes, stored_names, shared = _stored(model)
        tensors = sort_tensors(self._model, stored_names, shared)
        if trains is not None:
            for value, name in list(tensors.trained.items()):
                if not trains(name):
                    del tensors.trained[value]
                    tensors.frozen[name] = "it was not chosen"
        self._floats = _standing_for(model, precision)
        self._tensors = tensors
        self._make()

    def _make(self) -> None:
        graph, tensors = self._model.graph, self._tensors
        self.inputs = tuple(str(value.name) for value in graph_inputs(self._model))
        self.outputs = tuple(str(value.name) for value in graph.outputs)
        self.frozen: Mapping[str, str] = tensors.frozen
        defaults = [value for value in graph.inputs if value.is_initializer()]
        self._mode = Mode()
        varying = {*tensors.trained, *tensors.statistics, *defaults}
        self._program = build_program(self._model, varying, self._floats, self._mode)
        slots = self._program.slots
        self._keys: dict[str, str] = {}
        self._weights: list[tuple[int, str]] = []
        self._statistics: list[tuple[int, str]] = []
        for group, names in ((self._weights, tensors.trained), (self._statistics, tensors.statistics)):
            for value, name in names.items():
                if name not in self._keys:
                    self._keys[name] = _key(name)
                    self._register(name, value, group is self._weights)
                group.append((slots[str(value.name)], self._keys[name]))
        self._defaults = [
            (slots[str(value.name)], as_torch(tensor_of(value), self._floats).to(self._device))
            for value in defaults
            if value not in tensors.trained and value not in tensors.statistics
        ]
        self._input_slots = {
            str(value.name): (slots[str(value.name)], self._input_dtype(value)) for value in graph.inputs
        }
        self._output_slots = [(name, slots[name]) for name in self.outputs]
        self._place_constants(lambda value: value.to(self._device))

    def _register(self, name: str, value: ir.Value, trains: bool) -> None:
        stored = as_torch(tensor_of(value), self._floats)
        own = stored.to(self._device, copy=True)
        if trains:
            self.register_parameter(self._keys[name], torch.nn.Parameter(own))
        else:
            self.register_buffer(self._keys[name], own)

    def _input_dtype(self, value: ir.Value) -> torch.dtype | None:
        if value.dtype is None or value.dtype == ir.DataType.UNDEFINED:
            return None
        try:
            found = torch_dtype(value.dtype)
        except NoMeaning as reason:
            raise ModelError(f"input {quoted(value.name)}: {reason}") from reason
        return self._floats.get(found, found)

    def _place_constants(self, move: Callable[[Tensor], Tensor]) -> None:
        program = self._program
        template: list[Any] = [None] * program.size
        program.constants = {slot: move(value) for slot, value in program.constants.items()}
        for slot, value in (*program.constants.items(), *program.sizes.items()):
            template[slot] = value
        self._defaults = [(slot, move(value)) for slot, value in self._defaults]
        for slot, value in self._defaults:
            template[slot] = value
        self._template = template

    @property
    def trained(self) -> Mapping[str, torch.nn.Parameter]:
        """Parameters by stored name; a tied weight is one."""
        return {name: self._parameters[key] for name, key in self._keys.items() if key in self._parameters}  # type: ignore[misc]

    def forward(self, inputs: Mapping[str, Tensor], *, also: Sequence[str] = ()) -> dict[str, Tensor]:
        """Run the model.

        Args:
            inputs: tensors by name. Floating-point ones take the type that the module computes in.
            also: names of inner values (as the prepared copy names them) to be given too.

        Returns:
            The outputs by name, and what was asked for. What is no tensor in the model is none here: see
            `only_tensors`.

        Raises:
            DataError: an input is missing, or there is none of that name.
            UsageError: ``also`` names no value of the main graph.
            ModelError: a node can't run on these inputs.
        """
        values = list(self._template)
        for slot, key in self._weights:
            values[slot] = self._parameters[key]
        for slot, key in self._statistics:
            values[slot] = self._buffers[key]
        self._fill(values, inputs)
        keep = frozenset(self._slot(name) for name in also) if also else frozenset()
        run_steps(self._program.steps, values, self._device, keep)
        found = {name: values[slot] for name, slot in self._output_slots}
        for name in also:
            found[name] = values[self._slot(name)]
        return found

    def _fill(self, values: list[Any], inputs: Mapping[str, Tensor]) -> None:
        for name in self.inputs:
            if name not in inputs:
                raise DataError(f"input {quoted(name)} is missing; the model takes {', '.join(self.inputs)}")
        for name, value in inputs.items():
            if name not in self._input_slots:
                raise DataError(f"the model has no input {quoted(name)}; it takes {', '.join(self.inputs)}")
            slot, dtype = self._input_slots[name]
            if isinstance(value, Tensor):
                changes = dtype is not None and value.dtype != dtype
                if changes and not (
                    value.is_floating_point() and dtype is not None and dtype.is_floating_point
                ):
                    raise DataError(f"input {quoted(name)} holds {value.dtype}, the model takes {dtype}")
                value = value.to(self._device, dtype) if changes else value.to(self._device)
            values[slot] = value

    def has(self, name: str) -> bool:
        """Tell whether `forward` can give this value."""
        return name in self._program.slots

    def _slot(self, name: str) -> int:
        slot = self._program.slots.get(name)
        if slot is None:
            raise UsageError(f"the model has no value {quoted(name)}; inspect it for the names of its values")
        return slot

    def train(self, mode: bool = True) -> OnnxModule:
        """Let kept BatchNormalization nodes use, and move, the statistics of the batch; or not."""
        super().train(mode)
        self._mode.training = mode
        return self

    def values(self) -> dict[str, npt.NDArray[Any]]:
        """Return what is trained, and statistics that moved, by stored name, in the type that is stored."""
        found = {}
        for name, key in self._keys.items():
            if key in self._parameters:
                found[name] = as_stored(self._parameters[key], self._dtypes[name])  # type: ignore[arg-type]
                continue
            now = as_stored(self._buffers[key], self._dtypes[name])  # type: ignore[arg-type]
            if not np.array_equal(now, self._stored_statistic(name)):
                found[name] = now
        return found

    def _stored_statistic(self, name: str) -> npt.NDArray[Any]:
        value = next(value for value, known in self._tensors.statistics.items() if known == name)
        return np.asarray(tensor_of(value).numpy())

    # --- moves and copies -----------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OnnxModule:
        """Move constants together with parameters, as ``to`` and ``cuda`` do it."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._place_constants(fn)
        self._device = fn(torch.empty(0, device=self._device)).device
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModule:
        """Return a module with parameters of its own; what does not train is shared."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        torch.nn.Module.__init__(made)
        made._device, made._floats, made._dtypes = self._device, self._floats, self._dtypes
        made._model, made._tensors = self._model, self._tensors
        made._make()
        made._take_over(self.state_dict(), self.training, self._requires())
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the model and the parameters; functions are made anew."""
        tensors = self._tensors
        trained, statistics = (
            {str(value.name): name for value, name in group.items()}
            for group in (tensors.trained, tensors.statistics)
        )
        contents = ir.to_proto(self._model).SerializeToString()
        static = (contents, trained, statistics, dict(tensors.frozen))
        settings = (self._device, self._floats, self._dtypes)
        return _restored, (static, settings, self.state_dict(), self.training, self._requires())

    def _requires(self) -> dict[str, bool]:
        return {
            key: parameter.requires_grad
            for key, parameter in self._parameters.items()
            if parameter is not None
        }

    def _take_over(self, state: Mapping[str, Tensor], training: bool, requires: Mapping[str, bool]) -> None:
        self.load_state_dict(state)
        for key, wanted in requires.items():
            self._parameters[key].requires_grad_(wanted)  # type: ignore[union-attr]
        self.train(training)


def _restored(
    static: tuple[bytes, dict[str, str], dict[str, str], dict[str, str]],
    settings: tuple[torch.device, dict[torch.dtype, torch.dtype], dict[str, ir.DataType]],
    state: Mapping[str, Tensor],
    training: bool,
    requires: Mapping[str, bool],
) -> OnnxModule:
    contents, trained, statistics, frozen = static
    made = OnnxModule.__new__(OnnxModule)
    torch.nn.Module.__init__(made)
    made._device, made._floats, made._dtypes = settings
    made._model = ir.from_proto(onnx.ModelProto.FromString(contents))
    values = made._model.graph.initializers
    made._tensors = Tensors(
        {values[name]: stored for name, stored in trained.items()},
        {values[name]: stored for name, stored in statistics.items()},
        frozen,
    )
    made._make()
    made._take_over(state, training, requires)
    return made


def _key(name: str) -> str:
    """Return a name under which torch can register a parameter: without dots, and unlike any attribute."""
    return "tensor:" + name.replace("%", "%25").replace(".", "%2E")


def _stored(model: ir.Model) -> tuple[dict[str, ir.DataType], dict[int, str], set[str]]:
    """Return the type of every stored tensor by name, names by identity, and names that several have."""
    dtypes: dict[str, ir.DataType] = {}
    names: dict[int, str] = {}
    shared: set[str] = set()
    for name, values in stored_values(model).items():
        dtypes[name] = tensor_of(values[0]).dtype
        names.update((id(tensor_of(value)), name) for value in values)
        if len({id(tensor_of(value)) for value in values}) > 1:
            shared.add(name)
    return dtypes, names, shared


def _standing_for(model: ir.Model, precision: str | None) -> dict[torch.dtype, torch.dtype]:
    """Return which type stands for which: the wanted one for that of most numbers, and for narrower ones."""
    if precision is None:
        return {}
    wanted = PRECISIONS[precision]
    sizes: Counter[ir.DataType] = Counter()
    for values in stored_values(model).values():
        tensor = tensor_of(values[0])
        if tensor.dtype in TRAINED_TYPES:
            sizes[tensor.dtype] += tensor.size
    main = torch_dtype(sizes.most_common(1)[0][0]) if sizes else torch.float32
    floats = {torch_dtype(dtype) for dtype in TRAINED_TYPES}
    return {
        dtype: wanted
        for dtype in floats
        if dtype != wanted and (dtype == main or dtype.itemsize < wanted.itemsize)
    }


def _checked_device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {quoted(device)} can't be used: {one_line(error)}") from error
    return torch.empty(0, device=found).device
