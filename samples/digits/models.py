"""Two small networks for handwritten digits [batch, 1, 8, 8]: a residual one and a vision transformer."""

from __future__ import annotations

import torch
from torch import nn


def convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + branch(x)); the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            convolution(inputs, outputs, 3, stride),
            nn.Dropout2d(dropout),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, inputs, h, w] to [batch, outputs, h / stride, w / stride]."""
        return torch.relu(self.shortcut(x) + self.branch(x))


class ResidualNetwork(nn.Module):
    """Residual blocks, a depthwise-separable block, two branches that are concatenated, two linear layers."""

    def __init__(self, width: int = 64, classes: int = 10, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(1, width, 3), nn.Dropout2d(dropout))
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, dropout=dropout),
            nn.Dropout2d(dropout),
            ResidualBlock(width, 2 * width, stride=2, dropout=dropout),
            nn.Dropout2d(dropout),
        )
        self.separable = nn.Sequential(
            convolution(2 * width, 2 * width, 3, groups=2 * width),
            convolution(2 * width, 2 * width, 1),
            nn.Dropout2d(dropout),
        )
        self.narrow = convolution(2 * width, width, 1)
        self.wide = convolution(2 * width, width, 3)
        self.pool = nn.AvgPool2d(2)
        self.hidden = nn.Linear(2 * width * 2 * 2, 128)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(128, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map [batch, 1, 8, 8] to logits [batch, classes]."""
        x = self.separable(self.blocks(self.stem(image)))
        x = torch.cat([self.narrow(x), self.wide(x)], dim=1)
        x = torch.flatten(self.pool(x), 1)
        return self.classifier(self.dropout(torch.relu(self.hidden(x))))


class VisionTransformer(nn.Module):
    """2x2 patches as tokens, pre-norm encoder layers, the mean over the tokens, a classifier."""

    def __init__(
        self, width: int = 96, heads: int = 8, layers: int = 3, classes: int = 10, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.5)
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(layers)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map [batch, 1, 8, 8] to logits [batch, classes]."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.position
        return self.classifier(self.norm(self.layers(tokens)).mean(dim=1))


def example_inputs() -> torch.Tensor:
    """Return what ``onnxprune import models:ResidualNetwork`` traces with, unless it is told a shape."""
    return torch.zeros(1, 1, 8, 8)
