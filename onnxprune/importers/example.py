"""Example inputs: from shapes or from the user, at other batch sizes, and drawn at random like them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree  # the same flattening as torch.export's, so that orders agree

from onnxprune.errors import UsageError
from onnxprune.importers.input_shapes import InputShape, InputShapes, as_input_shape
from onnxprune.registry import did_you_mean

#: Integer inputs made from a shape stay below this, unless an embedding says how far they may go.
DEFAULT_INTEGER_BOUND = 2


@dataclass(frozen=True, slots=True)
class Example:
    """Arguments of one call of a module; any nesting of tensors and constants.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in the order of the exported model's inputs."""
        return tensors_of((self.args, dict(self.kwargs)))

    @property
    def batch_size(self) -> int | None:
        """Size of axis 0 where all tensors agree on one, else None."""
        sizes = {tensor.shape[0] if tensor.ndim else None for tensor in self.tensors}
        return sizes.pop() if len(sizes) == 1 else None

    def resized(self, batch_size: int) -> Example:
        """Return the same inputs with ``batch_size`` rows, repeated or dropped."""
        return self._map(lambda tensor: tensor[torch.arange(batch_size) % tensor.shape[0]])

    def drawn(self, generator: torch.Generator) -> Example:
        """Return random inputs of the same shapes, types and ranges."""
        return self._map(lambda tensor: _draw_like(tensor, generator))

    def _map(self, change: Any) -> Example:
        args, kwargs = pytree.tree_map_only(torch.Tensor, change, (self.args, dict(self.kwargs)))
        return Example(args, kwargs)


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """Return the tensors of nested tuples, lists, dicts and registered classes, in torch.export's order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _draw_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Floats: normal, with the example's mean and deviation; integers: uniform over the example's range."""
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        noise = torch.randn(tensor.shape, generator=generator)
        wide = tensor.float()
        deviation = wide.std(correction=0).item() if tensor.numel() else 0.0
        mean = wide.mean().item() if deviation else 0.0
        return (noise * (deviation or 1.0) + mean).to(tensor.dtype)
    if tensor.dtype is torch.bool or not tensor.numel():
        return (torch.rand(tensor.shape, generator=generator) < 0.5).to(tensor.dtype)
    low, high = int(tensor.min()), int(tensor.max())
    return torch.randint(low, high + 1, tensor.shape, generator=generator).to(tensor.dtype)


def example_from_given(module: nn.Module, given: Any) -> Example:
    """Wrap what a user gave: a tensor, a tuple or list of arguments, or a dict of keyword arguments.

    Raises:
        UsageError: there is no tensor in it, or ``forward`` has no parameter of a name in it.
    """
    if isinstance(given, Mapping):
        kwargs = {name: _to_cpu(value) for name, value in given.items()}
        example = Example((), _in_signature_order(module, kwargs))
    elif isinstance(given, (tuple, list)):
        example = Example(tuple(_to_cpu(value) for value in given), {})
    else:
        example = Example((_to_cpu(given),), {})
    if not example.tensors:
        raise UsageError("example inputs hold no tensor: give one, a tuple of arguments or a dict of them")
    return example


def _to_cpu(tree: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu(), tree)


def _in_signature_order(module: nn.Module, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Sort by the parameters of ``forward``: the exported inputs come in that order."""
    parameters = inspect.signature(module.forward).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in kwargs:
        if name not in parameters and not open_ended:
            hint = did_you_mean(name, parameters)
            raise UsageError(f"the module has no input {name!r}{hint}; its inputs: {', '.join(parameters)}")
    known = {name: kwargs[name] for name in parameters if name in kwargs}
    return {**known, **kwargs}


def example_from_shapes(module: nn.Module, shapes: InputShapes) -> Example:
    """Make standard normal inputs (integers: spread over what embeddings accept) of the given shapes.

    Args:
        module: asked for the parameters of ``forward`` and for their element type.
        shapes: by name or in order.

    Raises:
        UsageError: a name that ``forward`` does not have.
    """
    if isinstance(shapes, Mapping):
        made = {name: _make(module, as_input_shape(shape)) for name, shape in shapes.items()}
        return Example((), _in_signature_order(module, made))
    return Example(tuple(_make(module, as_input_shape(shape)) for shape in _in_order(shapes)), {})


def _in_order(shapes: Sequence[Any]) -> Sequence[Any]:
    # [1, 3, 224, 224] for a single input is what people write
    return [shapes] if shapes and all(isinstance(size, int) for size in shapes) else shapes


def _make(module: nn.Module, wanted: InputShape) -> torch.Tensor:
    floating = (parameter.dtype for parameter in module.parameters() if parameter.dtype.is_floating_point)
    dtype = getattr(torch, wanted.dtype) if wanted.dtype else next(floating, torch.float32)
    if dtype.is_floating_point:
        return torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = [part.num_embeddings for part in module.modules() if isinstance(part, nn.Embedding)]
    bound = (
        min([*rows, torch.iinfo(dtype).max]) if rows and dtype is not torch.bool else DEFAULT_INTEGER_BOUND
    )
    count = torch.Size(wanted.shape).numel()
    # evenly from 0 to bound - 1, so that inputs drawn later like this one cover the whole range
    return torch.linspace(0, bound - 1, count).round().reshape(wanted.shape).to(dtype)
