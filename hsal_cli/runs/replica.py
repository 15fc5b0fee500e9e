"""The loss of a batch that several workers share, and its gradient: DistributedDataParallel, and BatchNorm over the whole batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hsal_cli import distributed
from hsal_cli.errors import WorkerLost

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""loss(...) -> this worker's part of the loss, whose sum over the workers is the loss; and what to log, the same on all of them."""


class _LossOf(nn.Module):
    """A loss as a module's forward pass, so that DistributedDataParallel sees which parameters it uses."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *parts: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(*parts)


class Replica:
    """This worker's copy of a model on its device, with a loss of it; of several workers, all have the same weights.

    Its BatchNorms are replaced where there are several.
    """

    def __init__(self, model: nn.Module, loss: Loss):
        self.model, self._size, self._loss = model, distributed.current().size, loss
        if self._size > 1:
            model = synchronised(model)
            # Which parameters a loss uses depends on the objective; each worker has the same BatchNorm statistics already.
            with distributed.guarded(), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # newer torch renames broadcast_buffers
                self._loss = nn.parallel.DistributedDataParallel(_LossOf(model, loss), broadcast_buffers=False, find_unused_parameters=True)

    def backward(self, *parts: Any) -> dict[str, Tensor]:
        """Computes the loss of these parts and its gradient, added up over the workers, and returns what to log.

        Raises:
            WorkerLost, HsalError: another worker has gone; weights and BatchNorm statistics are as they were before.
        """
        self.model.zero_grad(set_to_none=True)
        before = [buffer.clone() for buffer in self.model.buffers()] if self._size > 1 else []
        try:
            with distributed.guarded():
                loss, logged = self._loss(*parts)
                (self._size * loss if self._size > 1 else loss).backward()  # it takes the mean over the workers
        except WorkerLost:
            for buffer, held in zip(self.model.buffers(), before, strict=True):
                buffer.copy_(held)
            raise
        return logged


def synchronised(model: nn.Module) -> nn.Module:
    """Has the BatchNorms of a model take their statistics over all workers; parameters and names stay as they are."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    # torch's would lose the activation that timm's norms hold.
    if all(parameter.device.type == "cuda" for parameter in model.parameters()) and not any(list(norm.children()) for norm in norms):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, SharedBatchNorm.of(child))
        else:
            synchronised(child)
    return model


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d over the batch of all workers, on any device; torch's SyncBatchNorm needs a GPU. What timm put behind it stays."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> SharedBatchNorm:
        """One that takes over the parameters and statistics of another."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made._parameters, made._buffers, made._modules, made.training = norm._parameters, norm._buffers, norm._modules, norm.training
        return made

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same; B may be 0, as long as another worker has rows."""
        if not self.training:
            return self._behind(super().forward(x))
        out, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), self.momentum)
        return self._behind(out)

    def _behind(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


class _Normalise(torch.autograd.Function):
    """y = weight (x - mean) / sqrt(variance + eps) + bias, with mean and variance over the workers' images and cells."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels, wide = x.shape[1], x.float()
        sums = distributed.all_reduce(torch.cat([wide.sum((0, 2, 3)), wide.new_tensor([x.numel() / channels])]))
        count = sums[-1]
        mean = sums[:channels] / count
        centred = wide - mean[:, None, None]
        # In two passes: E[x^2] - E[x]^2 would lose digits that one process keeps.
        variance = distributed.all_reduce(centred.square().sum((0, 2, 3))) / count
        scale = (variance + eps).rsqrt()
        normal = centred * scale[:, None, None]
        ctx.save_for_backward(normal, weight, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return (normal * weight[:, None, None] + bias[:, None, None]).to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, above: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        normal, weight, scale, count = ctx.saved_tensors
        wide = above.float()
        own = torch.cat([wide.sum((0, 2, 3)), (wide * normal).sum((0, 2, 3))])
        by_bias, by_weight = (distributed.all_reduce(own) / count).chunk(2)
        left = wide - by_bias[:, None, None] - normal * by_weight[:, None, None]
        down = (left * (weight * scale)[:, None, None]).to(above.dtype)
        bias, weights = own.chunk(2)  # of this worker alone: DistributedDataParallel adds them up
        return down, weights, bias, None
