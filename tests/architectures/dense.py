"""Models whose output is an image, a map of boxes, a volume or a wave."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from architectures.blocks import Classifier, Residual, conv_norm


class UNet(nn.Module):
    """Down and up again with transposed convolutions, skips concatenated, group normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = self._block(3, 16), self._block(16, 32)
        self.middle = self._block(32, 32)
        self.up_second, self.up_first = nn.ConvTranspose2d(32, 32, 2, 2), nn.ConvTranspose2d(16, 16, 2, 2)
        self.back_second, self.back_first = self._block(64, 16), self._block(32, 16)
        self.head = nn.Conv2d(16, 2, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(functional.max_pool2d(first, 2))
        y = self.middle(functional.max_pool2d(second, 2))
        y = self.back_second(torch.cat([self.up_second(y), second], 1))
        return self.head(self.back_first(torch.cat([self.up_first(y), first], 1)))


class FeaturePyramid(nn.Module):
    """Three levels, each added to the enlarged one above it; one head shared by all levels."""

    def __init__(self) -> None:
        super().__init__()
        widths = (8, 16, 24, 32)
        self.stages = nn.ModuleList(
            conv_norm(3 if i == 0 else widths[i - 1], widths[i], 3, 2, act=nn.ReLU()) for i in range(4)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, 16, 1) for width in widths[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in widths[1:])
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        maps = [lateral(level) for lateral, level in zip(self.lateral, levels[1:], strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + functional.interpolate(maps[i + 1], scale_factor=2.0)
        return tuple(self.head(smooth(level)) for smooth, level in zip(self.smooth, maps, strict=True))


class AtrousPyramid(nn.Module):
    """As DeepLab: dilated convolutions beside the mean of the whole image, then enlarged."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_norm(3, 16, 3, 2, act=nn.ReLU()), conv_norm(16, 24, 3, 2, act=nn.ReLU())
        )
        self.one = conv_norm(24, 16, 1, act=nn.ReLU())
        self.dilated = nn.ModuleList(nn.Conv2d(24, 16, 3, padding=rate, dilation=rate) for rate in (2, 3))
        self.pooled = nn.Conv2d(24, 16, 1)
        self.project = conv_norm(64, 16, 1, act=nn.ReLU())
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        pooled = torch.relu(self.pooled(functional.adaptive_avg_pool2d(y, 1)))
        pooled = functional.interpolate(pooled, size=(8, 8), mode="bilinear", align_corners=False)
        parts = [self.one(y), *(torch.relu(conv(y)) for conv in self.dilated), pooled]
        return functional.interpolate(
            self.head(self.project(torch.cat(parts, 1))), size=(32, 32), mode="bilinear", align_corners=False
        )


class HighResolution(nn.Module):
    """As HRNet: two resolutions side by side, each added to the other, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 12, 3, 2, act=nn.ReLU())
        self.lower = conv_norm(12, 24, 3, 2, act=nn.ReLU())
        self.stages = nn.ModuleList(
            nn.ModuleDict({
                "fine": self._block(12), "coarse": self._block(24),
                "down": conv_norm(12, 24, 3, 2),
                "up": conv_norm(24, 12, 1),
            })
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Conv2d(36, 4, 1)

    @staticmethod
    def _block(width: int) -> nn.Module:
        layers = conv_norm(width, width, act=nn.ReLU()), conv_norm(width, width)
        return Residual(nn.Sequential(*layers), act=nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        coarse = self.lower(fine)
        for stage in self.stages:
            a, b = stage["fine"](fine), stage["coarse"](coarse)
            fine = torch.relu(a + functional.interpolate(stage["up"](b), scale_factor=2.0))
            coarse = torch.relu(b + stage["down"](a))
        return self.head(torch.cat([fine, functional.interpolate(coarse, scale_factor=2.0)], 1))


class DetectionHead(nn.Module):
    """As YOLOv8: two levels, boxes from a softmax over bins, anchors subtracted and added, classes beside."""

    def __init__(self, bins: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.bins = bins
        self.first, self.second = (
            conv_norm(3, 16, 3, 4, act=nn.SiLU()),
            conv_norm(16, 24, 3, 2, act=nn.SiLU()),
        )
        self.box = nn.ModuleList(self._branch(width, 4 * bins) for width in (16, 24))
        self.kind = nn.ModuleList(self._branch(width, classes) for width in (16, 24))
        points = [
            torch.stack(torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")) for n in (8, 4)
        ]
        self.register_buffer("anchors", torch.cat([p.reshape(2, -1) for p in points], 1).float() + 0.5)
        self.register_buffer("numbers", torch.arange(bins).float().view(1, bins, 1, 1))

    @staticmethod
    def _branch(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(conv_norm(inputs, 16, act=nn.SiLU()), nn.Conv2d(16, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.first(x)]
        levels.append(self.second(levels[0]))
        box = torch.cat([m(y).flatten(2) for m, y in zip(self.box, levels, strict=True)], 2)
        kind = torch.cat([m(y).flatten(2) for m, y in zip(self.kind, levels, strict=True)], 2)
        logits = box.view(-1, 4, self.bins, 80).transpose(1, 2)
        distance = (logits.softmax(1) * self.numbers).sum(1)
        low, high = distance.chunk(2, 1)
        corners = torch.cat([self.anchors - low, self.anchors + high], 1)
        return torch.cat([corners, kind.sigmoid()], 1)


def pixel_shuffle() -> nn.Module:
    """As ESPCN, with a shuffle inside too: channels become pixels."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 32, 3, padding=1), nn.PixelShuffle(2),
        nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )  # fmt: skip


class WaveNet(nn.Module):
    """Gated dilated convolutions in one dimension, with residual and skip sums."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 16, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(16, 32, 3, padding=rate, dilation=rate) for rate in (1, 2, 4))
        self.residual = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(16, 24, 1) for _ in range(3))
        self.head = nn.Conv1d(24, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = []
        for dilated, residual, skip in zip(self.dilated, self.residual, self.skip, strict=True):
            tanh, sigmoid = dilated(x).chunk(2, 1)
            y = tanh.tanh() * sigmoid.sigmoid()
            x = x + residual(y)
            skips.append(skip(y))
        return self.head(torch.relu(torch.stack(skips).sum(0)))


class Volume(nn.Module):
    """Convolutions in three dimensions with a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(1, 12, 3, padding=1), nn.BatchNorm3d(12), nn.ReLU(), nn.MaxPool3d(2)
        )
        self.inner = nn.Sequential(nn.Conv3d(12, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU())
        self.outer = nn.Conv3d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.outer(self.inner(x))).mean((2, 3, 4)))


def style() -> nn.Module:
    """As fast style transfer: reflected borders, instance normalisation, residual blocks."""

    def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
        norm = nn.InstanceNorm2d(outputs, affine=True)
        return nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(inputs, outputs, 3, stride), norm, nn.ReLU())

    return nn.Sequential(
        layer(3, 12), layer(12, 24, 2), Residual(nn.Sequential(layer(24, 24), layer(24, 24))),
        nn.Upsample(scale_factor=2.0), layer(24, 12), nn.ReflectionPad2d(1), nn.Conv2d(12, 3, 3),
    )  # fmt: skip


class Siamese(nn.Module):
    """Two images, one network, and the distance of their embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Classifier(nn.Sequential(conv_norm(12, 24, 3, 2, act=nn.ReLU())), 12, 24)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.network(x) - self.network(y)).pow(2).sum(1)
