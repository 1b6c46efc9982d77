"""Fourier transforms, windows and mel filters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnxprune.ops.meanings.base import Run, Static, meaning

#: ``a + b cos(x) + c cos(2 x)``, x from 0 to 2 pi
_WINDOWS = {
    "HannWindow": (0.5, -0.5, 0.0),
    "HammingWindow": (25 / 46, -21 / 46, 0.0),
    "BlackmanWindow": (0.42, -0.5, 0.08),
}


@meaning(*_WINDOWS, host=(0,))
def window(node: Static) -> Run:
    """y[n] = a + b cos(2 pi n / N) + c cos(4 pi n / N), with N - 1 for N in a symmetric window"""
    constant, once, twice = _WINDOWS[node.node.op_type]
    periodic, dtype = node.int("periodic", 1) == 1, node.dtype("output_datatype", 1)

    def run(size: Tensor) -> Tensor:
        count = int(size)
        steps = torch.arange(count, dtype=torch.float64)
        angle = 2 * math.pi * steps / (count if periodic else count - 1)
        return (constant + once * torch.cos(angle) + twice * torch.cos(2 * angle)).to(dtype)

    return run


@meaning("DFT", host=(1, 2))
def fourier_transform(node: Static) -> Run:
    """Gives the Fourier transform along an axis; real and imaginary parts along the last axis"""
    onesided, inverse = node.int("onesided") == 1, node.int("inverse") == 1
    fixed = node.int("axis", 1) if node.version < 20 else -2

    def run(x: Tensor, length: Tensor | None = None, along: Tensor | None = None) -> Tensor:
        axis = (fixed if along is None else int(along)) % x.dim()
        size = None if length is None else int(length)
        signal = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x[..., 0]
        if inverse and onesided:
            real: Tensor = torch.fft.irfft(signal, size, dim=axis)
            return real.unsqueeze(-1)
        if inverse:
            return torch.view_as_real(torch.fft.ifft(signal, size, dim=axis))
        if onesided and not signal.is_complex():
            return torch.view_as_real(torch.fft.rfft(signal, size, dim=axis))
        y = torch.fft.fft(signal, size, dim=axis)
        return torch.view_as_real(y.narrow(axis, 0, y.shape[axis] // 2 + 1) if onesided else y)

    return run


@meaning("STFT", host=(1, 3))
def short_time_fourier_transform(node: Static) -> Run:
    """y[n, frame] = the Fourier transform of each frame of x[n], times a window"""
    onesided = node.int("onesided", 1) == 1

    def run(x: Tensor, step: Tensor, weights: Tensor | None = None, length: Tensor | None = None) -> Tensor:
        size = x.shape[1] if weights is None else weights.shape[0]
        if length is not None:
            size = int(length)
        signal = torch.view_as_complex(x.contiguous()) if x.dim() == 3 and x.shape[2] == 2 else x.flatten(1)
        frames = signal.unfold(1, size, int(step))
        if weights is not None:
            frames = frames * weights
        if onesided and not frames.is_complex():
            return torch.view_as_real(torch.fft.rfft(frames, dim=2))
        y = torch.fft.fft(frames, dim=2)
        return torch.view_as_real(y[:, :, : size // 2 + 1] if onesided else y)

    return run


@meaning("MelWeightMatrix", host=(0, 1, 2, 3, 4))
def mel_weight_matrix(node: Static) -> Run:
    """y[bin, band] = triangles that rise to the middle of a band and fall to its end"""
    dtype = node.dtype("output_datatype", 1)

    def run(bands: Tensor, length: Tensor, rate: Tensor, low: Tensor, high: Tensor) -> Tensor:
        count, bins = int(bands), int(length) // 2 + 1
        ends = [2595 * math.log10(1 + float(edge) / 700) for edge in (low, high)]
        mels = ends[0] + torch.arange(count + 2, dtype=torch.float64) * (ends[1] - ends[0]) / (count + 2)
        hertz = 700 * (10 ** (mels / 2595) - 1)
        edges = torch.floor((int(length) + 1) * hertz / int(rate))
        left, middle, right = edges[:-2], edges[1:-1], edges[2:]
        places = torch.arange(bins, dtype=torch.float64)[:, None]
        rise = torch.where(middle > left, (places - left) / (middle - left), (places == middle).double())
        fall = torch.where(right > middle, (right - places) / (right - middle), (places == middle).double())
        inside = (places >= left) & (places <= right)
        return (torch.where(places <= middle, rise, fall).clamp(min=0) * inside).to(dtype)

    return run
