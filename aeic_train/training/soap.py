"""SOAP, one-sided: Adam in the eigenbasis of each weight's gradient covariance over its shorter side.

Source: Vyas et al., arXiv 2409.11321; on codecs arXiv 2601.20769. One side keeps the cost under a tenth of a step here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Soap(torch.optim.Optimizer):
    """``betas`` are those of the momentum and of both second moments; ``refresh`` is the steps between new bases."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        refresh: int = 10,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "refresh": refresh, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self._update(group, number, parameter)

    def _update(self, group: dict[str, Any], number: int, parameter: Tensor) -> None:
        state = self.state[parameter]
        gradient = parameter.grad.float()
        assert gradient is not None
        matrix = is_weight(gradient)
        if matrix:
            gradient = gradient.reshape(gradient.shape[0], -1)
            flipped = gradient.shape[0] > gradient.shape[1]
            gradient = gradient.T if flipped else gradient
        if not state:
            state["step"] = 0
            state["momentum"] = torch.zeros_like(gradient)
            state["variance"] = torch.zeros_like(gradient)
            if matrix:
                state["covariance"] = gradient @ gradient.T
                state["basis"] = torch.linalg.eigh(state["covariance"])[1].flip(1)
        state["step"] += 1
        first, second = group["betas"]
        momentum = state["momentum"].lerp_(gradient, 1 - first)
        if matrix:
            basis = state["basis"]
            seen, gradient_seen = product(basis.T, momentum), product(basis.T, gradient)
        else:
            seen, gradient_seen = momentum, gradient
        variance = state["variance"].mul_(second).addcmul_(gradient_seen, gradient_seen, value=1 - second)
        correction = (1 - second ** state["step"]) ** 0.5 / (1 - first ** state["step"])
        update = seen * correction / (variance.sqrt() + group["eps"])
        if matrix:
            update = product(basis, update)
            state["covariance"].lerp_(product(gradient, gradient.T), 1 - second)
            if (state["step"] + number) % group["refresh"] == 0:
                state["basis"] = torch.linalg.qr(state["covariance"] @ basis)[0]
            update = update.T if flipped else update
        parameter.sub_(update.reshape(parameter.shape), alpha=group["lr"])


def is_weight(tensor: Tensor) -> bool:
    """Whether rows and columns mix: kernels and linear layers. A table of gains, one row a rate point, is none: turning
    its basis would push the rows that a step did not use."""
    return tensor.ndim == 4 and tensor[0].numel() > 1 or tensor.ndim == 2 and min(tensor.shape) >= 16


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in bfloat16 where it is large, which CPUs with AVX512-BF16 do several times faster; the noise is far below
    that of the gradients."""
    if a.shape[0] < 256:
        return a @ b
    return (a.bfloat16() @ b.bfloat16()).float()
