"""The networks of the speed benchmark as plain modules of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Network = tuple[nn.Module, list[Any]]  # the views in the order of Keras's weights


def _dense(sizes: tuple[int, ...]) -> Network:
    linears = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
    layers = [layer for linear in linears for layer in (linear, nn.ReLU())]
    return nn.Sequential(*layers[:-1]), [v for layer in linears for v in _affine(layer)]


def _cnn(sizes: tuple[int, ...]) -> Network:
    first, second = nn.Conv2d(1, sizes[0], 3), nn.Conv2d(sizes[0], sizes[1], 3)
    head = nn.Linear(sizes[1] * 5 * 5, sizes[2])
    model = nn.Sequential(
        *(first, nn.ReLU(), nn.MaxPool2d(2)),
        *(second, nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), head),
    )
    views = [_kernel(first), first.bias, _kernel(second), second.bias]
    return model, [*views, *_after_flatten(head, sizes[1], 5)]


def _conv_bn_dropout(sizes: tuple[int, ...]) -> Network:
    conv = nn.Conv2d(1, sizes[0], 3, padding="same", bias=False)
    norm = nn.BatchNorm2d(sizes[0], eps=1e-3, momentum=0.01)
    head = nn.Linear(sizes[0] * 14 * 14, sizes[1])
    model = nn.Sequential(
        *(conv, norm, nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.25), head),
    )
    views = [_kernel(conv), *norm.parameters(), *_after_flatten(head, sizes[0], 14)]
    return model, [*views, norm.running_mean, norm.running_var]


class _LSTM(nn.Module):
    """The last output of an LSTM, then a linear layer."""

    def __init__(self, units: int, outputs: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, units, batch_first=True)
        self.head = nn.Linear(units, outputs)
        # torch adds two biases: training both would double the step of Keras's one.
        self.lstm.bias_hh_l0.requires_grad_(False).zero_()

    def forward(self, x: Tensor) -> Tensor:
        _, (last, _) = self.lstm(x)
        return self.head(last[-1])


def _lstm(sizes: tuple[int, ...]) -> Network:
    model = _LSTM(*sizes)
    kernels = [model.lstm.weight_ih_l0.T, model.lstm.weight_hh_l0.T]
    return model, [*kernels, model.lstm.bias_ih_l0, *_affine(model.head)]


class _Block(nn.Module):
    """A causal pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width, eps=1e-3)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.before_mlp = nn.LayerNorm(width, eps=1e-3)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(self.before_mlp(x))))

    def views(self) -> list[Tensor]:
        """The weights in the order of Keras's layers."""
        thirds = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        views = [*self.before_attention.parameters()]
        views += [view for kernel, bias in thirds for view in (kernel.T, bias)]
        views += [*_affine(self.out), *self.before_mlp.parameters()]
        return [*views, *_affine(self.up), *_affine(self.down)]


class _Transformer(nn.Module):
    """A language model; one row of logits per position."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, n: int):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(n)))
        self.norm = nn.LayerNorm(width, eps=1e-3)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.tokens(x) + self.positions)
        return self.head(self.norm(x)).flatten(0, 1)


def _transformer(sizes: tuple[int, ...]) -> Network:
    model = _Transformer(*sizes)
    views = [model.tokens.weight, model.positions]
    views += [view for block in model.blocks for view in block.views()]
    return model, [*views, *model.norm.parameters(), *_affine(model.head)]


def _embedding_bag(sizes: tuple[int, ...]) -> Network:
    bag = nn.EmbeddingBag(sizes[0], sizes[1], mode="mean", sparse=True)
    head = nn.Linear(sizes[1], sizes[2])
    return nn.Sequential(bag, head), [bag.weight, *_affine(head)]


def _affine(layer: nn.Linear) -> list[Tensor]:
    return [layer.weight.T, layer.bias]


def _kernel(layer: nn.Conv2d) -> Tensor:
    return layer.weight.permute(2, 3, 1, 0)


def _after_flatten(layer: nn.Linear, channels: int, side: int) -> list[Tensor]:
    # Rows are numbered channels first in torch, channels last in Keras.
    kernel = layer.weight.unflatten(1, (channels, side, side)).permute(2, 3, 1, 0)
    return [kernel, layer.bias]


NETWORKS: dict[str, Callable[[tuple[int, ...]], Network]] = {
    "dense": _dense,
    "cnn": _cnn,
    "conv_bn_dropout": _conv_bn_dropout,
    "lstm": _lstm,
    "transformer": _transformer,
    "embedding_bag": _embedding_bag,
}
