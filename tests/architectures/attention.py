"""Attention over images, and what stands in for it: mixers and gated multi-layer perceptrons."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Patches(nn.Module):
    """Images of 16x16 pixels -> 16 tokens, transformer blocks, the mean of all tokens, a linear layer."""

    def __init__(self, blocks: list[nn.Module], width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(torch.zeros(1, 16, width))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def feed_forward(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class PreNorm(nn.Module):
    """x + attention(norm(x)), then x + feed forward(norm(x))."""

    def __init__(self, attention: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.attention = attention
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed_forward = feed_forward(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.feed_forward(self.second(x))


class ModuleAttention(nn.Module):
    """torch's own module, which packs q, k and v and merges batch with heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class FusedAttention(nn.Module):
    """q, k and v from one product, as DeiT has it: ``3 * heads * width of a head``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        each = width // self.heads
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, each).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * each**-0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


def vision_transformer() -> nn.Module:
    """ViT with nn.MultiheadAttention."""
    return Patches([PreNorm(ModuleAttention(24, 4), 24, 48) for _ in range(2)], 24)


def fused_vision_transformer() -> nn.Module:
    """ViT with a fused qkv product."""
    return Patches([PreNorm(FusedAttention(24, 4), 24, 48) for _ in range(2)], 24)


class WindowBlock(nn.Module):
    """As Swin: attention inside windows of 4x4, shifted by two, with a bias by relative position."""

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.heads, self.shift = heads, shift
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.table = nn.Parameter(torch.zeros(49, heads))
        places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        relative = places[:, :, None] - places[:, None] + 3
        self.register_buffer("index", (relative[0] * 7 + relative[1]).flatten())
        self.second, self.feed_forward = nn.LayerNorm(width), feed_forward(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, _, width = x.shape
        each = width // self.heads
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(batch, height // 4, 4, height // 4, 4, width).transpose(2, 3).reshape(-1, 16, width)
        q, k, v = self.qkv(y).reshape(-1, 16, 3, self.heads, each).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index].view(16, 16, self.heads).permute(2, 0, 1)
        weights = (q * each**-0.5 @ k.transpose(-2, -1) + bias).softmax(-1)
        y = self.out((weights @ v).transpose(1, 2).reshape(-1, 16, width))
        y = (
            y.view(batch, height // 4, height // 4, 4, 4, width)
            .transpose(2, 3)
            .reshape(batch, height, height, width)
        )
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.feed_forward(self.second(x))


class ShiftedWindows(nn.Module):
    """Two window blocks, a merging of patches, and a head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 2, 2)
        self.blocks = nn.Sequential(WindowBlock(width, 4, 0), WindowBlock(width, 4, 2))
        self.norm, self.merge = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.embed(x).permute(0, 2, 3, 1))
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.head(self.merge(self.norm(torch.cat(corners, -1))).mean((1, 2)))


class MixerBlock(nn.Module):
    """A perceptron across tokens, then one across channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens, self.channels = feed_forward(tokens, 24), feed_forward(width, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.first(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.second(x))


def mixer() -> nn.Module:
    """MLP-Mixer."""
    return Patches([MixerBlock(16, 24) for _ in range(2)], 24)


class GatedBlock(nn.Module):
    """As gMLP: half of the hidden units gate the others after a product across tokens."""

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, 2 * hidden)
        self.gate_norm, self.spatial = nn.LayerNorm(hidden), nn.Conv1d(tokens, tokens, 1)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        kept, gate = functional.gelu(self.up(self.norm(x))).chunk(2, -1)
        return x + self.down(kept * self.spatial(self.gate_norm(gate)))


def gated_mlp() -> nn.Module:
    """gMLP."""
    return Patches([GatedBlock(16, 24, 32) for _ in range(2)], 24)
