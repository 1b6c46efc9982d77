"""Fixed transforms kept as weights: a Fourier transform or a filter bank that nobody trained.

Audio models carry them in front, as a convolution or a matrix product. Their rows are equally large by
design, so a score of weights would remove frequencies at random; they are found here and left alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.body_shapes import has_bodies
from onnxprune.model.stored import stored_tensor
from onnxprune.ops.registry import rule_for

#: Shorter rows are too short to tell a sinusoid from a learned filter.
_SHORTEST_ROW = 16
_FEWEST_ROWS = 8
#: Twice the size of a Fourier transform of 2048 samples; what is larger was trained.
_MOST_WEIGHTS = 2**23
#: Bins beside the peak of a row's spectrum that a window spreads it over.
_SPREAD = 3
_SHARE = 0.9


def fixed_transforms(nodes: Iterable[ir.Node], inputs: Iterable[ir.Value]) -> dict[tuple[ir.Node, int], str]:
    """Return the weights that are fixed transforms of the model's inputs, with what they are.

    Only weights that meet a signal which no other weight has touched can be such.

    Args:
        nodes: in topological order, those of subgraphs too.
        inputs: of the graph.
    """
    signals = {value for value in inputs if value.dtype is None or value.dtype.is_floating_point()}
    found: dict[tuple[ir.Node, int], str] = {}
    for node in nodes:
        computed = [value for value in node.inputs if value is not None and stored_tensor(value) is None]
        if not any(value in signals for value in computed):
            continue
        rule = rule_for(node)
        weights = () if rule is None else rule.weight_inputs(node, _rank)
        trained = False
        for weight in weights:
            value = node.inputs[weight.index]
            tensor = None if value is None else stored_tensor(value)
            if tensor is None:
                continue
            what = _kind(tensor, weight.output_axis)
            trained |= what is None
            if what is not None:
                found[node, weight.index] = what
        if not trained and not has_bodies(node):
            signals.update(node.outputs)
    return found


def _rank(value: ir.Value) -> int:
    tensor = stored_tensor(value)
    return len(tensor.shape) if tensor is not None else len(value.shape or ())


def _kind(tensor: ir.TensorProtocol, output_axis: int) -> str | None:
    """Return what kind of fixed transform a weight is, None if it may have been trained."""
    sizes = [int(size) for size in tensor.shape]  # type: ignore[arg-type]
    others = [size for axis, size in enumerate(sizes) if axis != output_axis and size != 1]
    if len(others) != 1 or others[0] < _SHORTEST_ROW or sizes[output_axis] < _FEWEST_ROWS:
        return None
    if others[0] * sizes[output_axis] > _MOST_WEIGHTS:
        return None
    rows = np.moveaxis(tensor.numpy().astype(np.float64), output_axis, 0).reshape(sizes[output_axis], -1)
    if _is_fourier(rows):
        return "a Fourier transform: its rows are sinusoids of rising frequency"
    if _is_filter_bank(rows):
        return "a filter bank: its rows are bands of rising frequency"
    return None


def _is_fourier(rows: npt.NDArray[np.float64]) -> bool:
    some = rows[:: max(1, len(rows) // _FEWEST_ROWS)]
    if _peaks(some) is None:  # trained weights fail here, before the whole is transformed
        return False
    peaks = _peaks(rows)
    return peaks is not None and _rises(peaks) and len(np.unique(peaks)) > _FEWEST_ROWS // 2


def _peaks(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.int64] | None:
    """Return the strongest frequency of each row, None if most rows are no sinusoids."""
    power = np.abs(np.fft.rfft(rows, axis=1)) ** 2
    total = power.sum(axis=1)
    present = total > 1e-12 * total.max(initial=0.0)  # the sine of frequency 0 is nothing
    power, total = power[present], total[present]
    if len(power) < _FEWEST_ROWS // 2:
        return None
    peaks = power.argmax(axis=1)
    near = np.abs(np.arange(power.shape[1]) - peaks[:, None]) <= _SPREAD
    narrow = (power * near).sum(axis=1) >= _SHARE * total
    return peaks if narrow.mean() >= _SHARE else None


def _is_filter_bank(rows: npt.NDArray[np.float64]) -> bool:
    if (rows < 0).any():
        return False
    used = rows > 0
    counts = used.sum(axis=1)
    present = counts > 0
    first, last = used.argmax(axis=1), rows.shape[1] - 1 - used[:, ::-1].argmax(axis=1)
    contiguous = (last - first + 1 == counts)[present]
    narrow = counts[present] <= rows.shape[1] / 2
    return bool(
        present.sum() >= _FEWEST_ROWS
        and contiguous.all()
        and narrow.all()
        and _rises(rows.argmax(axis=1)[present])
    )


def _rises(peaks: npt.NDArray[np.int64]) -> bool:
    """Return whether numbers never fall, but for one new start: cosines come first, then sines."""
    return bool((np.diff(peaks) < 0).sum() <= 1 and peaks.max() > peaks.min())
