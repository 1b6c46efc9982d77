"""What several architectures are made of."""

from __future__ import annotations

from torch import Tensor, nn


def conv_norm(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    """A convolution that keeps the image's size, batch normalisation, and an activation if one is given."""
    padding = kernel // 2
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act] if act is not None else []))


class Classifier(nn.Module):
    """A stem, a body, the mean over the image, and a linear layer."""

    def __init__(self, body: nn.Module, width: int, outputs: int, stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = conv_norm(3, width, act=nn.ReLU()) if stem is None else stem
        self.body = body
        self.head = nn.Linear(outputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Residual(nn.Module):
    """The sum of a branch and its input, or of a branch and a projection of it."""

    def __init__(
        self, branch: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.act = nn.Identity() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) + self.shortcut(x))
