"""Fixed transforms in front of a model are found and left alone; learned filters are not taken for them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import check_cut, frozen_groups, graph, group_of, open_groups

from onnxprune.ops.transforms import fixed_transforms
from onnxprune.ops.weights import find_weights


def fourier(length: int = 64, *, windowed: bool = True, interleaved: bool = False) -> np.ndarray:
    """Real and imaginary rows of a discrete Fourier transform, float32 [length + 2, 1, length]."""
    frequencies, times = np.arange(length // 2 + 1)[:, None], np.arange(length)
    angles = 2 * np.pi * frequencies * times / length
    window = np.hanning(length) if windowed else np.ones(length)
    parts = [np.cos(angles) * window, -np.sin(angles) * window]
    rows = np.stack(parts, axis=1).reshape(-1, length) if interleaved else np.concatenate(parts)
    return rows[:, None].astype(np.float32)


def mel(bins: int = 33, bands: int = 10) -> np.ndarray:
    """Overlapping triangles that grow wider, float32 [bins, bands]."""
    edges = np.linspace(0, (bins - 1) ** 0.5, bands + 2) ** 2
    at = np.arange(bins)[:, None]
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)


SPECTROGRAM = """
    s = Conv<strides = [32]>(x, stft) r, i = Split<axis = 1>(s, half) rr = Mul(r, r) ii = Mul(i, i)
    p = Add(rr, ii) m = Sqrt(p) t = Transpose<perm = [0, 2, 1]>(m) b = MatMul(t, mel)
    h = MatMul(b, a_w) g = Relu(h) y = MatMul(g, c_w)
"""


def spectrogram(stft: np.ndarray) -> ir.Model:
    constants = {"stft": stft, "half": [33, 33], "mel": mel(), "a_w": (10, 24), "c_w": (24, 3)}
    return graph(SPECTROGRAM, inputs="float[N,1,256] x", constants=constants)


@pytest.mark.parametrize("windowed", [False, True])
def test_a_spectrogram_stays_whole(windowed: bool) -> None:
    analysis = check_cut(spectrogram(fourier(windowed=windowed)))
    assert open_groups(analysis) == {"a_w": 24}
    reasons = " ".join(frozen_groups(analysis).values())
    assert "stft is left alone: it looks like a Fourier transform" in reasons
    assert "mel is left alone: it looks like a filter bank" in reasons


def test_masks_leave_it_alone() -> None:
    uses, skipped = find_weights(spectrogram(fourier()))
    assert [use.tensor for use in uses] == ["a_w", "c_w"]
    assert {entry.name for entry in skipped} == {"stft", "mel"}


def test_rows_in_turn_and_as_a_matrix() -> None:
    matrix = fourier(interleaved=True)[:, 0].T
    model = graph("h = MatMul(x, dft) y = Abs(h)", inputs="float[N,64] x", constants={"dft": matrix})
    assert list(fixed_transforms(model.graph, model.graph.inputs).values()) == [
        "a Fourier transform: its rows are sinusoids of rising frequency"
    ]


def test_learned_filters_are_no_transform() -> None:
    noise = np.random.default_rng(0).standard_normal((66, 1, 64)).astype(np.float32)
    analysis = check_cut(spectrogram(noise))
    assert group_of(analysis, "stft", 0).frozen is None


def test_shuffled_rows_are_no_transform() -> None:
    shuffled = np.random.default_rng(0).permutation(fourier())
    model = spectrogram(shuffled)
    assert "stft" not in {
        node.inputs[i].name for node, i in fixed_transforms(model.graph, model.graph.inputs)
    }


def test_a_transform_behind_a_trained_layer_was_trained() -> None:
    constants = {"a_w": (64, 64), "dft": fourier()[:, 0].T.copy(), "c_w": (66, 3)}
    body = "h = MatMul(x, a_w) s = MatMul(h, dft) y = MatMul(s, c_w)"
    analysis = check_cut(graph(body, inputs="float[N,64] x", constants=constants))
    assert sorted(open_groups(analysis).values()) == [64, 66]
