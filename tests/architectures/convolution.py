"""Convolutional classifiers: each is the smallest one that has what its family is known for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from architectures.blocks import Classifier, Residual, conv_norm


def residual_basic() -> nn.Module:
    """As ResNet-18: two 3x3 convolutions, and a projection where the width changes."""

    def branch(inputs: int, outputs: int, stride: int) -> nn.Module:
        return nn.Sequential(
            conv_norm(inputs, outputs, 3, stride, act=nn.ReLU()), conv_norm(outputs, outputs)
        )

    blocks = [
        Residual(branch(16, 16, 1), act=nn.ReLU()),
        Residual(branch(16, 32, 2), conv_norm(16, 32, 1, 2), nn.ReLU()),
        Residual(branch(32, 32, 1), act=nn.ReLU()),
    ]
    return Classifier(nn.Sequential(*blocks), 16, 32)


def _bottleneck(
    inputs: int, width: int, outputs: int, groups: int = 1, squeeze: nn.Module | None = None
) -> nn.Module:
    branch = nn.Sequential(
        conv_norm(inputs, width, 1, act=nn.ReLU()),
        conv_norm(width, width, 3, groups=groups, act=nn.ReLU()),
        nn.Identity() if squeeze is None else squeeze,
        conv_norm(width, outputs, 1),
    )
    return Residual(branch, None if inputs == outputs else conv_norm(inputs, outputs, 1), nn.ReLU())


def bottleneck() -> nn.Module:
    """As ResNet-50: reduce, convolve, widen."""
    return Classifier(nn.Sequential(_bottleneck(16, 8, 32), _bottleneck(32, 8, 32)), 16, 32)


def grouped_bottleneck() -> nn.Module:
    """As ResNeXt and RegNet: the 3x3 convolution has groups."""
    return Classifier(nn.Sequential(_bottleneck(16, 16, 32, 4), _bottleneck(32, 16, 32, 4)), 16, 32)


class SqueezeExcitation(nn.Module):
    def __init__(self, width: int, inner: int, gate: nn.Module) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, inner, 1)
        self.expand = nn.Conv2d(inner, width, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.expand(torch.relu(self.reduce(pooled))))


def inverted_residual() -> nn.Module:
    """As MobileNetV3 and EfficientNet: widen, depthwise, squeeze and excite, project."""

    def branch(inputs: int, outputs: int, stride: int, act: nn.Module, gate: nn.Module) -> nn.Module:
        width = 3 * inputs
        return nn.Sequential(
            conv_norm(inputs, width, 1, act=act),
            conv_norm(width, width, 3, stride, groups=width, act=act),
            SqueezeExcitation(width, 8, gate),
            conv_norm(width, outputs, 1),
        )

    body = nn.Sequential(
        Residual(branch(16, 16, 1, nn.Hardswish(), nn.Hardsigmoid())),
        branch(16, 24, 2, nn.SiLU(), nn.Sigmoid()),
        Residual(branch(24, 24, 1, nn.SiLU(), nn.Sigmoid())),
    )
    return Classifier(body, 16, 24)


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


def dense_concat() -> nn.Module:
    """As DenseNet: normalisation and activation before each convolution, results appended."""
    transition = nn.Sequential(
        nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1, bias=False), nn.AvgPool2d(2)
    )
    body = [
        DenseLayer(16, 8),
        DenseLayer(24, 8),
        transition,
        DenseLayer(16, 8),
        nn.BatchNorm2d(24),
        nn.ReLU(),
    ]
    return Classifier(nn.Sequential(*body), 16, 24)


class InceptionBlock(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        relu = nn.ReLU()
        self.one = conv_norm(inputs, 8, 1, act=relu)
        self.three = nn.Sequential(conv_norm(inputs, 8, 1, act=relu), conv_norm(8, 12, 3, act=relu))
        self.five = nn.Sequential(conv_norm(inputs, 4, 1, act=relu), conv_norm(4, 8, 5, act=relu))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_norm(inputs, 4, 1, act=relu))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


def inception() -> nn.Module:
    """As GoogLeNet: branches of several sizes side by side."""
    return Classifier(nn.Sequential(InceptionBlock(16), InceptionBlock(32)), 16, 32)


class ShuffleUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv_norm(half, half, 1, act=nn.ReLU()),
            conv_norm(half, half, 3, groups=half),
            conv_norm(half, half, 1, act=nn.ReLU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        whole = torch.cat([left, self.branch(right)], 1)
        batch, width, height, length = whole.shape
        return (
            whole.view(batch, 2, width // 2, height, length)
            .transpose(1, 2)
            .reshape(batch, width, height, length)
        )


def channel_shuffle() -> nn.Module:
    """As ShuffleNetV2: half of the channels pass, then both halves are shuffled together."""
    return Classifier(nn.Sequential(ShuffleUnit(24), ShuffleUnit(24)), 24, 24)


class SplitConcat(nn.Module):
    def __init__(self, inputs: int, outputs: int, inner: int) -> None:
        super().__init__()
        self.inner = inner
        self.before = conv_norm(inputs, 2 * inner, 1, act=nn.SiLU())
        self.blocks = nn.ModuleList(
            Residual(
                nn.Sequential(conv_norm(inner, inner, act=nn.SiLU()), conv_norm(inner, inner, act=nn.SiLU()))
            )
            for _ in range(2)
        )
        self.after = conv_norm(4 * inner, outputs, 1, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.before(x).split((self.inner, self.inner), 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.after(torch.cat(parts, 1))


def split_concat() -> nn.Module:
    """As CSP and C2f stages: split, several blocks on one part, all of them concatenated."""
    return Classifier(SplitConcat(16, 32, 8), 16, 32)


class Res2NetUnit(nn.Module):
    def __init__(self, width: int, scales: int) -> None:
        super().__init__()
        self.part = width // scales
        self.before = conv_norm(width, width, 1, act=nn.ReLU())
        self.convs = nn.ModuleList(conv_norm(self.part, self.part, act=nn.ReLU()) for _ in range(scales - 1))
        self.after = conv_norm(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.before(x), self.part, 1)
        outputs = [parts[0]]
        for conv, part in zip(self.convs, parts[1:], strict=True):
            outputs.append(conv(part if len(outputs) == 1 else part + outputs[-1]))
        return torch.relu(x + self.after(torch.cat(outputs, 1)))


def res2net() -> nn.Module:
    """As Res2Net: each part of the channels is added to the next part."""
    return Classifier(nn.Sequential(Res2NetUnit(24, 3), Res2NetUnit(24, 3)), 24, 24)


class GhostUnit(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.primary = conv_norm(inputs, half, 1, act=nn.ReLU())
        self.cheap = conv_norm(half, half, 3, groups=half, act=nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], 1)


def ghost() -> nn.Module:
    """As GhostNet: half of the channels are made from the other half by a depthwise convolution."""
    return Classifier(nn.Sequential(GhostUnit(16, 32), Residual(GhostUnit(32, 32))), 16, 32)


class MultiBranch(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.three, self.one = conv_norm(width, width), conv_norm(width, width, 1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.three(x) + self.one(x) + self.norm(x))


def multi_branch() -> nn.Module:
    """As RepVGG before its branches are merged: 3x3, 1x1 and the identity, each normalised."""
    return Classifier(
        nn.Sequential(MultiBranch(16), conv_norm(16, 24, act=nn.ReLU()), MultiBranch(24)), 16, 24
    )


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(functional.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """As ConvNeXt: large depthwise kernels, layer normalisation, layer scale."""
    return Classifier(nn.Sequential(ConvNextBlock(16), ConvNextBlock(16)), 16, 16, nn.Conv2d(3, 16, 4, 4))


class SelectiveKernel(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.small, self.large = (
            conv_norm(width, width, act=nn.ReLU()),
            conv_norm(width, width, 5, act=nn.ReLU()),
        )
        self.squeeze, self.choose = nn.Linear(width, 8), nn.Linear(8, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.small(x), self.large(x)], 1)
        logits = self.choose(torch.relu(self.squeeze(both.sum(1).mean((2, 3)))))
        share = logits.view(-1, 2, x.shape[1]).softmax(1)
        return (both * share[..., None, None]).sum(1)


def selective_kernel() -> nn.Module:
    """As SKNet: two kernel sizes, mixed channel by channel with weights from a softmax."""
    return Classifier(nn.Sequential(SelectiveKernel(16), conv_norm(16, 24, act=nn.ReLU())), 16, 24)


class EfficientChannelAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return x * torch.sigmoid(y)[..., None, None]


def channel_attention() -> nn.Module:
    """As ECA-Net: a convolution slides along the channels, which keeps their number."""
    blocks = [_bottleneck(16, 8, 32, squeeze=EfficientChannelAttention()), _bottleneck(32, 8, 32)]
    return Classifier(nn.Sequential(*blocks), 16, 32)


def local_response() -> nn.Module:
    """As AlexNet: local response normalisation, grouped convolutions, a flattened image."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(24 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
