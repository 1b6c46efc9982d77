"""Two networks for Fashion-MNIST [batch, 1, 28, 28]: a residual one and a vision transformer."""

from __future__ import annotations

import torch
from torch import nn

CLASSES = 10


class BasicBlock(nn.Module):
    """relu(shortcut(x) + branch(x)) with two 3x3 convolutions (He et al. 2015, figure 5, left)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
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


class ResNet(nn.Module):
    """A 3x3 convolution, three stages of two basic blocks, the mean over the image, a linear classifier."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.Sequential(
            BasicBlock(width, width, 1),
            BasicBlock(width, width, 1),
            BasicBlock(width, 2 * width, 2),
            BasicBlock(2 * width, 2 * width, 1),
            BasicBlock(2 * width, 4 * width, 2),
            BasicBlock(4 * width, 4 * width, 1),
        )
        self.classifier = nn.Linear(4 * width, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map [batch, 1, 28, 28] to logits [batch, classes]."""
        logits: torch.Tensor = self.classifier(self.stages(self.stem(image)).mean(dim=(2, 3)))
        return logits


class VisionTransformer(nn.Module):
    """4x4 patches as tokens, pre-norm encoder layers, the mean over the tokens, a linear classifier."""

    def __init__(self, width: int = 72, heads: int = 4, layers: int = 4, hidden: int = 288) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 49, width) * 0.02)
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, hidden, 0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(layers)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map [batch, 1, 28, 28] to logits [batch, classes]."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.position
        logits: torch.Tensor = self.classifier(self.norm(self.layers(tokens)).mean(dim=1))
        return logits
