"""Small torch models of the families that people train, and their exports: material for tests and benchmarks.

Each has a few blocks and random weights, and nothing in it is left at a constant (biases, norms, statistics),
since equal values would hide a wrong index.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Literal, TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor, nn

from architectures import attention, convolution, dense, sequences

Exporter = Literal["ts", "dynamo"]

#: The opset that each exporter is asked for: its own default, or the last one it knows well.
OPSETS: Mapping[Exporter, int] = {"ts": 17, "dynamo": 20}

#: A module, its example inputs, and the names of their symbolic axes by input name.
Architecture: TypeAlias = tuple[nn.Module, tuple[Tensor, ...], dict[str, dict[int, str]]]


def _images(build: Callable[[], nn.Module], *shape: int, count: int = 1) -> Callable[[], Architecture]:
    """Images (or volumes, waves, rows of features) ``[batch, *shape]``, as many as the model takes."""

    def make() -> Architecture:
        names = ("x", "y")[:count]
        return build(), tuple(torch.randn(2, *shape) for _ in names), {name: {0: "batch"} for name in names}

    return make


def _tokens(
    build: Callable[[], nn.Module], *, mask: bool = False, count: int = 1
) -> Callable[[], Architecture]:
    """Token numbers ``[batch, length]``, both symbolic; a mask of ones and zeros beside them if asked for."""

    def make() -> Architecture:
        lengths = (8, 6)[:count]
        inputs = [torch.randint(0, sequences.TOKENS, (2, length)) for length in lengths]
        axes = {name: {0: "batch", 1: f"length_{name}"} for name, _ in zip("xy", lengths, strict=False)}
        if mask:
            inputs.append(torch.ones(2, 8))
            axes["mask"] = {0: "batch", 1: "length_x"}
        return build(), tuple(inputs), axes

    return make


#: Every architecture, by name.
ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    "residual_basic": _images(convolution.residual_basic, 3, 16, 16),
    "bottleneck": _images(convolution.bottleneck, 3, 16, 16),
    "grouped_bottleneck": _images(convolution.grouped_bottleneck, 3, 16, 16),
    "inverted_residual": _images(convolution.inverted_residual, 3, 16, 16),
    "dense_concat": _images(convolution.dense_concat, 3, 16, 16),
    "inception": _images(convolution.inception, 3, 16, 16),
    "channel_shuffle": _images(convolution.channel_shuffle, 3, 16, 16),
    "split_concat": _images(convolution.split_concat, 3, 16, 16),
    "res2net": _images(convolution.res2net, 3, 16, 16),
    "ghost": _images(convolution.ghost, 3, 16, 16),
    "multi_branch": _images(convolution.multi_branch, 3, 16, 16),
    "convnext": _images(convolution.convnext, 3, 32, 32),
    "selective_kernel": _images(convolution.selective_kernel, 3, 16, 16),
    "channel_attention": _images(convolution.channel_attention, 3, 16, 16),
    "local_response": _images(convolution.local_response, 3, 16, 16),
    "unet": _images(dense.UNet, 3, 16, 16),
    "feature_pyramid": _images(dense.FeaturePyramid, 3, 32, 32),
    "atrous_pyramid": _images(dense.AtrousPyramid, 3, 32, 32),
    "high_resolution": _images(dense.HighResolution, 3, 16, 16),
    "detection_head": _images(dense.DetectionHead, 3, 32, 32),
    "pixel_shuffle": _images(dense.pixel_shuffle, 3, 8, 8),
    "wavenet": _images(dense.WaveNet, 1, 32),
    "volume": _images(dense.Volume, 1, 8, 8, 8),
    "style": _images(dense.style, 3, 16, 16),
    "siamese": _images(dense.Siamese, 3, 16, 16, count=2),
    "vision_transformer": _images(attention.vision_transformer, 3, 16, 16),
    "fused_vision_transformer": _images(attention.fused_vision_transformer, 3, 16, 16),
    "shifted_windows": _images(attention.ShiftedWindows, 3, 16, 16),
    "mixer": _images(attention.mixer, 3, 16, 16),
    "gated_mlp": _images(attention.gated_mlp, 3, 16, 16),
    "encoder": _tokens(sequences.Encoder, mask=True),
    "decoder": _tokens(sequences.Decoder),
    "rotary_decoder": _tokens(sequences.RotaryDecoder),
    "encoder_decoder": _tokens(sequences.EncoderDecoder, count=2),
    "mixture_of_experts": _images(sequences.Mixture, 6, 12),
    "lstm_tagger": _tokens(sequences.Tagger),
    "gru_classifier": _images(sequences.Bidirectional, 6, 12),
}

#: Those with attention heads.
ATTENTION = (
    "vision_transformer", "fused_vision_transformer", "shifted_windows",
    "encoder", "decoder", "rotary_decoder", "encoder_decoder",
)  # fmt: skip


def build(name: str, seed: int = 0) -> Architecture:
    """Return an architecture with weights, inputs and statistics drawn from a seed, ready for inference.

    Raises:
        KeyError: there is no architecture of this name.
    """
    torch.manual_seed(seed)
    module, inputs, axes = ARCHITECTURES[name]()
    with torch.no_grad():
        for parameter in module.parameters():
            constant = parameter.numel() > 1 and parameter.std() == 0
            if constant or parameter.ndim == 1:  # norms start at 1, positions at 0
                parameter.copy_(parameter.mean().round() + 0.2 * torch.randn_like(parameter))
        for key, buffer in module.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif key.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return module.eval(), inputs, axes


@contextmanager
def _silence() -> Iterator[None]:
    """Exporters talk of packages that are not installed and of their own future."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


def export(name: str, exporter: Exporter, seed: int = 0) -> bytes:
    """Return an architecture as the bytes of an ``.onnx`` file.

    Args:
        name: a key of `ARCHITECTURES`.
        exporter: ``ts`` (TorchScript, opset 17) or ``dynamo`` (opset 20).
        seed: of the weights.
    """
    module, inputs, axes = build(name, seed)
    with _silence():
        if exporter == "ts":
            file = io.BytesIO()
            torch.onnx.export(
                module, inputs, file, dynamo=False, opset_version=OPSETS[exporter],
                input_names=list(axes), dynamic_axes=axes,
            )  # fmt: skip
            return file.getvalue()
        dynamic = tuple(dict.fromkeys(of_input, torch.export.Dim.DYNAMIC) for of_input in axes.values())
        program = torch.onnx.export(
            module, inputs, dynamo=True, opset_version=OPSETS[exporter],
            input_names=list(axes), dynamic_shapes=dynamic,
        )  # fmt: skip
    if program is None:
        raise RuntimeError(f"torch exported nothing for {name}")
    return ir.to_proto(program.model).SerializeToString()
