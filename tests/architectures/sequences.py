"""Text: encoders, decoders, both, mixtures of experts, and recurrent layers. Tokens are numbers below 60."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from architectures.attention import feed_forward

TOKENS = 60

#: Positions that are learned or masked.
LONGEST = 24


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scale + bias) v: ``[batch, heads, length, each]`` -> ``[batch, length, width]``."""
    logits = q @ k.transpose(-2, -1) * scale
    mixed = (logits if bias is None else logits + bias).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Separate q, k and v; keys and values may come from elsewhere."""

    def __init__(self, width: int, heads: int, bias: bool = True, scaled: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5 if scaled else 1.0
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=bias) for _ in range(4))

    def forward(self, x: Tensor, source: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        source = x if source is None else source
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.q(x), self.k(source), self.v(source))
        )
        return self.o(attend(q, k, v, self.scale, bias))


class Encoder(nn.Module):
    """As BERT: normalisation after each sum, a mask, a pooled first token."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(TOKENS, width), nn.Embedding(LONGEST, width)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.ModuleList(Attention(width, heads) for _ in range(2))
        self.hidden = nn.ModuleList(feed_forward(width, 48) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.pool, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        bias = (1.0 - mask[:, None, None, :]) * -10000.0
        x = self.norm(self.words(x) + self.places.weight[: x.shape[1]])
        for i in range(2):
            x = self.norms[2 * i](x + self.attention[i](x, bias=bias))
            x = self.norms[2 * i + 1](x + self.hidden[i](x))
        return self.head(torch.tanh(self.pool(x[:, 0])))


class Decoder(nn.Module):
    """As GPT-2: q, k and v split from one product, a causal mask, the embedding as output head."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.words, self.places = nn.Embedding(TOKENS, width), nn.Parameter(torch.zeros(LONGEST, width))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.hidden = nn.ModuleList(feed_forward(width, 64) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.register_buffer("mask", torch.full((LONGEST, LONGEST), -10000.0).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        x = self.words(x) + self.places[:length]
        for i in range(2):
            parts = self.qkv[i](self.norms[2 * i](x)).split(self.width, -1)
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
            scale = (self.width // self.heads) ** -0.5
            x = x + self.out[i](attend(q, k, v, scale, self.mask[:length, :length]))
            x = x + self.hidden[i](self.norms[2 * i + 1](x))
        return functional.linear(self.norms[4](x), self.words.weight)


class RootMeanSquare(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs of places, one from each half."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


class RotaryDecoder(nn.Module):
    """As Llama: grouped-query attention, rotary positions, gated hidden units, root mean squares."""

    def __init__(self, width: int = 32, heads: int = 8, shared: int = 4, hidden: int = 48) -> None:
        super().__init__()
        each = width // heads
        self.each, self.repeats = each, heads // shared
        self.words, self.head = nn.Embedding(TOKENS, width), nn.Linear(width, TOKENS, bias=False)
        sizes = {"q": heads * each, "k": shared * each, "v": shared * each, "gate": hidden, "up": hidden}
        self.layers = nn.ModuleList(
            nn.ModuleDict({
                **{name: nn.Linear(width, size, bias=False) for name, size in sizes.items()},
                "o": nn.Linear(width, width, bias=False), "down": nn.Linear(hidden, width, bias=False),
                "first": RootMeanSquare(width), "second": RootMeanSquare(width),
            })
            for _ in range(2)
        )  # fmt: skip
        self.norm = RootMeanSquare(width)
        speeds = 100.0 ** -torch.arange(0, 1, 2 / each)
        angles = torch.outer(torch.arange(float(LONGEST)), speeds).repeat(1, 2)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())
        self.register_buffer("mask", torch.full((LONGEST, LONGEST), -10000.0).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        turn = self.cosine[:length], self.sine[:length]
        x = self.words(x)
        for layer in self.layers:
            y = layer["first"](x)
            q, k, v = (layer[name](y).unflatten(-1, (-1, self.each)).transpose(1, 2) for name in "qkv")
            q, k = rotate(q, *turn), rotate(k, *turn)
            k, v = (t[:, :, None].expand(-1, -1, self.repeats, -1, -1).flatten(1, 2) for t in (k, v))
            x = x + layer["o"](attend(q, k, v, self.each**-0.5, self.mask[:length, :length]))
            y = layer["second"](x)
            x = x + layer["down"](functional.silu(layer["gate"](y)) * layer["up"](y))
        return self.head(self.norm(x))


class EncoderDecoder(nn.Module):
    """As T5: relative position biases, cross attention, no scale, embeddings shared and tied."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(TOKENS, width)
        self.encoder = nn.ModuleList([Attention(width, heads, False, False), self._hidden(width)])
        self.decoder = nn.ModuleList(
            [*(Attention(width, heads, False, False) for _ in range(2)), self._hidden(width)]
        )
        self.norms = nn.ModuleList(RootMeanSquare(width) for _ in range(7))
        self.encoder_bias, self.decoder_bias = nn.Embedding(16, heads), nn.Embedding(16, heads)

    @staticmethod
    def _hidden(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, 48, bias=False), nn.ReLU(), nn.Linear(48, width, bias=False))

    @staticmethod
    def _relative(length: int, table: nn.Embedding) -> Tensor:
        places = torch.arange(length)
        return table((places[None] - places[:, None]).clamp(-8, 7) + 8).permute(2, 0, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.words(x), self.words(y)
        x = x + self.encoder[0](self.norms[0](x), bias=self._relative(x.shape[1], self.encoder_bias))
        x = self.norms[2](x + self.encoder[1](self.norms[1](x)))
        length = y.shape[1]
        bias = self._relative(length, self.decoder_bias) + torch.full((length, length), -10000.0).triu(1)
        y = y + self.decoder[0](self.norms[3](y), bias=bias)
        y = y + self.decoder[1](self.norms[4](y), x)
        y = y + self.decoder[2](self.norms[5](y))
        return functional.linear(self.norms[6](y), self.words.weight)


class Mixture(nn.Module):
    """Every expert sees every token, and a router weighs their results."""

    def __init__(self, width: int = 24, experts: int = 4, hidden: int = 32) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, width), nn.Linear(width, 5)
        self.router = nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        share = self.router(x).softmax(-1)
        every = functional.gelu(x.unsqueeze(1) @ self.up) @ self.down
        mixed = (every * share.transpose(1, 2).unsqueeze(-1)).sum(1)
        return self.head(x + mixed)


class Tagger(nn.Module):
    """Two LSTM layers over embedded tokens, a tag for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(TOKENS, 24)
        self.layers = nn.LSTM(24, 32, 2, batch_first=True)
        self.head = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.words(x))[0])


class Bidirectional(nn.Module):
    """A GRU in both directions; the last states are classified."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.GRU(12, 24, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> Tensor:
        states = self.layers(x)[1]
        return self.head(torch.cat([states[0], states[1]], -1))
