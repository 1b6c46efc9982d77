"""Recurrent layers: LSTM, GRU, RNN, in both directions, with the functions and limits of the standard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning

Function = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]
#: (what the input gives, state before) -> state after; the first of a state is what a step puts out.
Step = Callable[[Tensor, State], State]

_PLAIN: dict[str, Function] = {
    "Relu": torch.relu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "Softsign": functional.softsign,
    "Softplus": functional.softplus,
}

#: Functions with numbers alpha and perhaps beta, and what these are if they are not given.
_WITH_NUMBERS: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "Affine": (lambda x, alpha, beta: alpha * x + beta, (1.0, 0.0)),
    "LeakyRelu": (functional.leaky_relu, (0.01,)),
    "ThresholdedRelu": (lambda x, alpha: torch.where(x > alpha, x, 0), (1.0,)),
    "ScaledTanh": (lambda x, alpha, beta: alpha * torch.tanh(beta * x), (1.0, 1.0)),
    "HardSigmoid": (lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1), (0.2, 0.5)),
    "Elu": (functional.elu, (1.0,)),
}

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of one direction: rows are gates times units.

    Attributes:
        inputs: ``[gates * units, inputs]``.
        states: ``[gates * units, units]``.
        input_bias: ``[gates * units]``, or None.
        state_bias: as input_bias.
        peepholes: ``[3 * units]`` of an LSTM, or None.
    """

    inputs: Tensor
    states: Tensor
    input_bias: Tensor | None
    state_bias: Tensor | None
    peepholes: Tensor | None


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a node says of its layer, but for its weights."""

    kind: str
    functions: tuple[tuple[Function, ...], ...]
    directions: tuple[str, ...]
    limit: float
    input_forget: bool
    linear_before_reset: bool
    plain: bool

    def limited(self, x: Tensor) -> Tensor:
        return x.clamp(-self.limit, self.limit) if self.limit else x


def _strings(node: Static, name: str) -> tuple[str, ...]:
    return tuple(node.node.attributes.get_strings(name, ()))


def _numbers(node: Static, name: str) -> list[float]:
    return list(node.node.attributes.get_floats(name, ()))


def _functions(names: Sequence[str], alphas: list[float], betas: list[float]) -> list[Function]:
    """Return the named functions; those that take numbers take the next ones, or have their own."""
    known = {name.lower(): name for name in (*_PLAIN, *_WITH_NUMBERS)}
    found: list[Function] = []
    for given in names:
        name = known.get(given.lower())
        if name is None:
            raise NoMeaning(f"activation {given}")
        if name in _PLAIN:
            found.append(_PLAIN[name])
            continue
        function, defaults = _WITH_NUMBERS[name]
        numbers = [
            given_numbers.pop(0) if given_numbers else default
            for given_numbers, default in zip((alphas, betas), defaults, strict=False)
        ]
        found.append(_bound(function, numbers))
    return found


def _bound(function: Callable[..., Tensor], numbers: Sequence[float]) -> Function:
    return lambda x: function(x, *numbers)


def _layer(node: Static) -> _Layer:
    kind = node.node.op_type
    direction = node.text("direction", "forward")
    directions = ("forward", "reverse") if direction == "bidirectional" else (direction,)
    defaults = _DEFAULTS["LSTM" if kind.endswith("LSTM") else kind]
    names = _strings(node, "activations") or defaults * len(directions)
    functions = _functions(names, _numbers(node, "activation_alpha"), _numbers(node, "activation_beta"))
    each = len(defaults)
    limit, input_forget = node.float("clip", 0.0), node.int("input_forget", 0) == 1
    linear = node.int("linear_before_reset", 0) == 1
    return _Layer(
        kind,
        tuple(tuple(functions[each * place : each * (place + 1)]) for place in range(len(directions))),
        directions,
        limit,
        input_forget,
        linear,
        plain=names == defaults * len(directions) and not limit and not input_forget,
    )


def _lstm_step(layer: _Layer, functions: Sequence[Function], weights: Weights) -> Step:
    """Gates i, o, f, c; Hochreiter and Schmidhuber 1997, with peepholes of Gers and Schmidhuber 2000."""
    gate, candidate, output = functions
    peep_i, peep_o, peep_f = (None,) * 3 if weights.peepholes is None else weights.peepholes.chunk(3)

    def seen(x: Tensor, weight: Tensor | None, cell: Tensor) -> Tensor:
        return layer.limited(x if weight is None else x + weight * cell)

    def step(x: Tensor, state: State) -> State:
        hidden, cell = state
        i, o, f, c = (x + hidden @ weights.states.mT).chunk(4, dim=-1)
        i = gate(seen(i, peep_i, cell))
        f = 1 - i if layer.input_forget else gate(seen(f, peep_f, cell))
        cell = f * cell + i * candidate(layer.limited(c))
        o = gate(seen(o, peep_o, cell))
        return o * output(cell), cell

    return step


def _gru_step(layer: _Layer, functions: Sequence[Function], weights: Weights) -> Step:
    """Gates z, r, h; Cho et al. 2014, 1406.1078, equations 5 to 8."""
    gate, candidate = functions
    units = weights.states.shape[1]
    gates, last = weights.states[: 2 * units], weights.states[2 * units :]
    bias = None if weights.state_bias is None else weights.state_bias[2 * units :]

    def step(x: Tensor, state: State) -> State:
        (hidden,) = state
        z, r = (layer.limited(x[:, : 2 * units] + hidden @ gates.mT)).chunk(2, dim=-1)
        z, r = gate(z), gate(r)
        if layer.linear_before_reset:
            inner = r * functional.linear(hidden, last, bias)
        else:
            inner = functional.linear(r * hidden, last, bias)
        new = candidate(layer.limited(x[:, 2 * units :] + inner))
        return ((1 - z) * new + z * hidden,)

    return step


def _rnn_step(layer: _Layer, functions: Sequence[Function], weights: Weights) -> Step:
    """Elman 1990: f(x w' + h r' + b)."""
    (function,) = functions

    def step(x: Tensor, state: State) -> State:
        return (function(layer.limited(x + state[0] @ weights.states.mT)),)

    return step


_STEPS = {"LSTM": _lstm_step, "GRU": _gru_step, "RNN": _rnn_step}


def _scan(
    x: Tensor, step: Step, state: State, lengths: Tensor | None, backwards: bool
) -> tuple[Tensor, State]:
    """Run over ``[steps, batch, gates * units]``; behind its length, a sample gives 0 and keeps its state."""
    found = []
    count = x.shape[0]
    for place in reversed(range(count)) if backwards else range(count):
        after = step(x[place], state)
        if lengths is None:
            state = after
            found.append(state[0])
        else:
            runs = (place < lengths)[:, None]
            state = tuple(torch.where(runs, new, old) for new, old in zip(after, state, strict=True))
            found.append(torch.where(runs, after[0], 0))
    if backwards:
        found.reverse()
    return torch.stack(found) if found else x.new_zeros(0, *state[0].shape), state


def _in_torch(
    layer: _Layer, x: Tensor, weights: list[Weights], states: list[State]
) -> tuple[Tensor, list[State]]:
    """Run a layer of usual form by torch's own kernel: ``[steps, directions, batch, units]``.

    torch has the gates in another order: i f c o for i o f c of an LSTM, r z h for z r h of a GRU.
    """
    order = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}[layer.kind]

    def ordered(rows: Tensor) -> Tensor:
        parts = rows.chunk(len(order))
        return torch.cat([parts[place] for place in order]) if len(order) > 1 else rows

    with_bias = weights[0].input_bias is not None
    flat = []
    for own in weights:
        flat += [ordered(own.inputs), ordered(own.states)]
        if own.input_bias is not None and own.state_bias is not None:
            flat += [ordered(own.input_bias), ordered(own.state_bias)]
    begin = [torch.stack([state[place] for state in states]) for place in range(len(states[0]))]
    kernels: dict[str, Callable[..., tuple[Tensor, ...]]] = {
        "LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_tanh
    }  # fmt: skip
    kernel = kernels[layer.kind]
    given = begin if layer.kind == "LSTM" else begin[0]
    y, *last = kernel(x, given, flat, with_bias, 1, 0.0, False, len(weights) == 2, False)
    count = len(weights)
    return y.reshape(*y.shape[:2], count, y.shape[2] // count).transpose(1, 2), [
        tuple(part[place] for part in last) for place in range(count)
    ]


def _weights(inputs: Tensor, states: Tensor, bias: Tensor | None, peepholes: Tensor | None) -> list[Weights]:
    found = []
    for place in range(len(inputs)):
        early, late = (None, None) if bias is None else bias[place].chunk(2)
        own = None if peepholes is None else peepholes[place]
        found.append(Weights(inputs[place], states[place], early, late, own))
    return found


def _run_layer(
    layer: _Layer, x: Tensor, weights: list[Weights], states: list[State], lengths: Tensor | None
) -> tuple[Tensor, list[State]]:
    """Return outputs ``[steps, directions, batch, units]`` and the last state of each direction."""
    usual = (
        layer.plain and lengths is None and len(x) > 0 and (layer.kind != "GRU" or layer.linear_before_reset)
    )
    if usual and weights[0].peepholes is None and layer.directions != ("reverse",):
        return _in_torch(layer, x, weights, states)
    found, last = [], []
    for place, (own, state) in enumerate(zip(weights, states, strict=True)):
        units = own.states.shape[1]
        bias = own.input_bias
        if bias is not None and own.state_bias is not None:
            late = units if layer.kind == "GRU" else 0  # the last gate of a GRU adds its own inside
            early = len(bias) - late
            bias = torch.cat([bias[:early] + own.state_bias[:early], bias[early:]])
        step = _STEPS[layer.kind](layer, layer.functions[place], own)
        y, end = _scan(
            functional.linear(x, own.inputs, bias), step, state, lengths, layer.directions[place] == "reverse"
        )
        found.append(y)
        last.append(end)
    return torch.stack(found, dim=1), last


@meaning("LSTM", "GRU", "RNN")
def recurrent(node: Static) -> Run:
    """y[t] = step(x[t], y[t - 1]) for all steps t, by the gates of the layer"""
    layer, layout = _layer(node), node.int("layout", 0)
    if layer.kind not in _STEPS:
        raise NoMeaning(layer.kind)

    def run(
        x: Tensor,
        inputs: Tensor,
        states: Tensor,
        bias: Tensor | None = None,
        lengths: Tensor | None = None,
        hidden: Tensor | None = None,
        cell: Tensor | None = None,
        peepholes: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        if layout:
            x = x.transpose(0, 1)
        begins = [hidden, cell] if layer.kind == "LSTM" else [hidden]
        zeros = x.new_zeros(x.shape[1], states.shape[2])
        begin: list[State] = [
            tuple(zeros if part is None else part[:, place] if layout else part[place] for part in begins)
            for place in range(len(inputs))
        ]
        y, last = _run_layer(layer, x, _weights(inputs, states, bias, peepholes), begin, lengths)
        ends = [torch.stack([state[part] for state in last], dim=layout) for part in range(len(begins))]
        return (y.permute(2, 0, 1, 3) if layout else y, *ends)

    return run
