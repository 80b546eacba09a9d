"""The arms on PyTorch: plain modules and `torch.optim.SGD`, one example per step.

Weights come and go through views of torch's parameters whose axes are in Keras's order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.arms import names
from benchmarks.arms.arm import Arm, Unsupported
from benchmarks.arms.torch_networks import NETWORKS
from benchmarks.arms.workloads import Workload

# With one example per step a second thread gave no clear gain on any network (within
# 10% either way, on two cores), and on a busy machine waiting for it made a step up to
# 30 times as long.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)

_LOSSES = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}


# torch's moving variance, there the last view, averages unbiased estimates, Keras's
# biased ones. The average is linear: started scaled by their ratio it stays so.
_LAST_SCALE = {"conv_bn_dropout": 28 * 28 / (28 * 28 - 1)}


@dataclass
class _Trained:
    """A network in training and its examples."""

    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    views: list[Tensor]
    last_scale: float
    x: Tensor
    y: Tensor
    mean_loss: float = float("nan")

    def examples(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one."""
        targets = len(self.y) // len(self.x)
        return zip(self.x.split(1), self.y.split(targets), strict=True)

    def train(self) -> None:
        total = torch.zeros(())
        for x, y in self.examples():
            self.optimizer.zero_grad()
            loss = self.loss(x, y)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        self.mean_loss = total.item() / len(self.x)

    @torch.no_grad()
    def start_from(self, weights: list[np.ndarray]) -> None:
        """Takes the weights of Keras."""
        self.shapes = [value.shape for value in weights]
        for view, value in zip(self.views, weights, strict=True):
            view.copy_(torch.tensor(value).reshape(view.shape))
        self.views[-1].mul_(self.last_scale)

    @torch.no_grad()
    def weights(self) -> list[np.ndarray]:
        values = [*self.views[:-1], self.views[-1] / self.last_scale]
        pairs = zip(values, self.shapes, strict=True)
        return [np.array(v.detach().numpy()).reshape(shape) for v, shape in pairs]


def _prepare(workload: Workload, x: Any, y: Any, wrap: Callable[..., Any]) -> _Trained:
    torch.manual_seed(0)
    model, views = NETWORKS[workload.network](workload.sizes)
    criterion = _LOSSES[workload.loss]

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return criterion(model(x), y)

    # `foreach` and `fused` were no faster, and `fused` takes no sparse gradients.
    trained = [p for p in model.parameters() if p.requires_grad]
    sgd = torch.optim.SGD(trained, workload.learning_rate, workload.momentum)
    scale = _LAST_SCALE.get(workload.network, 1.0)
    return _Trained(wrap(loss), sgd, views, scale, *_tensors(x, y))


def _tensors(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    inputs, targets = (torch.from_numpy(np.ascontiguousarray(a)) for a in (x, y))
    if inputs.ndim == 4:
        inputs = inputs.permute(0, 3, 1, 2).contiguous()
    if not targets.is_floating_point():
        targets = targets.long().flatten()
    return inputs, targets


def make_eager(workload: Workload, weights: list[np.ndarray], x: Any, y: Any) -> Arm:
    """The loop as it is written."""
    arm = _prepare(workload, x, y, lambda loss: loss)
    arm.start_from(weights)
    return arm


def make_compiled(workload: Workload, weights: list[np.ndarray], x: Any, y: Any) -> Arm:
    """The same with forward pass and loss, and so the backward pass, compiled."""
    torch.compiler.reset()  # or the networks share one limit of recompilations
    # Without `fullgraph` a part that it cannot compile would run eagerly, unnoticed.
    arm = _prepare(workload, x, y, partial(torch.compile, fullgraph=True))
    try:
        arm.loss(*next(arm.examples())).backward()
    except RuntimeError as error:  # every error of the compiler is one
        reason = str(error).splitlines()[0]
        raise Unsupported(f"torch.compile fails: {reason}") from error
    arm.optimizer.zero_grad()
    arm.start_from(weights)  # last: the trial moved the moving statistics
    return arm


ARMS = {names.TORCH: make_eager, "torch.compile": make_compiled}
