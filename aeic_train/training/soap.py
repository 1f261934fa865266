"""SOAP, one-sided: Adam in the eigenbasis of each weight's gradient covariance over its shorter side.

Source: Vyas et al., arXiv 2409.11321; on codecs arXiv 2601.20769. One side keeps the cost under a tenth of a step here.
Weights of one shape are updated together: their matrices are stacked, and every product is one batched call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from aeic_nets.runtime.precision import best_dtype

STATES = ("momentum", "variance", "covariance", "basis")


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
        self._stacks: dict[tuple[int, ...], dict[str, Tensor]] = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._stacks = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # without torch's overload that returns a loss
        for group in self.param_groups:
            buckets: dict[Any, list[int]] = {}
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    # A parameter that had no gradient before is at a step of its own.
                    steps = self.state[parameter].get("step", 0)
                    buckets.setdefault((tuple(parameter.shape), steps), []).append(number)
            for numbers in buckets.values():
                self._update(group, numbers)

    def _update(self, group: dict[str, Any], numbers: list[int]) -> None:
        """One step of the parameters at ``numbers`` of ``group``, which are of one shape and have gradients."""
        parameters = [group["params"][number] for number in numbers]
        gradient = torch.stack([parameter.grad.float() for parameter in parameters])
        shape, matrix = gradient.shape, is_weight(gradient[0])
        flipped = False
        if matrix:
            gradient = gradient.flatten(2)
            flipped = gradient.shape[1] > gradient.shape[2]
            gradient = gradient.mT if flipped else gradient
        stack = self._stacked(parameters, gradient, matrix)
        step = self.state[parameters[0]]["step"] + 1
        first, second = group["betas"]
        momentum = stack["momentum"].lerp_(gradient, 1 - first)
        if matrix:
            basis = stack["basis"]
            seen, gradient_seen = product(basis.mT, momentum), product(basis.mT, gradient)
        else:
            seen, gradient_seen = momentum, gradient
        variance = stack["variance"].mul_(second).addcmul_(gradient_seen, gradient_seen, value=1 - second)
        correction = (1 - second**step) ** 0.5 / (1 - first**step)
        update = seen * correction / (variance.sqrt() + group["eps"])
        if matrix:
            update = product(basis, update)
            stack["covariance"].lerp_(product(gradient, gradient.mT), 1 - second)
            # Not all in one step: the factorisations are slow.
            turning = [at for at, number in enumerate(numbers) if (step + number) % group["refresh"] == 0]
            if turning:
                basis[turning] = torch.linalg.qr(stack["covariance"][turning] @ basis[turning])[0]
            update = update.mT if flipped else update
        for parameter, change in zip(parameters, update.reshape(shape)):
            self.state[parameter]["step"] = step
            parameter.sub_(change, alpha=group["lr"])

    def _stacked(self, parameters: list[Tensor], gradient: Tensor, matrix: bool) -> dict[str, Tensor]:
        """The states of ``parameters``, stacked. Each parameter's own state is a view into the stack."""
        key = tuple(id(parameter) for parameter in parameters)
        if key in self._stacks:
            return self._stacks[key]
        states = [self.state[parameter] for parameter in parameters]
        if all(states):
            stack = {name: torch.stack([state[name] for state in states]) for name in STATES if name in states[0]}
        else:
            stack = {"momentum": torch.zeros_like(gradient), "variance": torch.zeros_like(gradient)}
            if matrix:
                stack["covariance"] = gradient @ gradient.mT
                stack["basis"] = torch.linalg.eigh(stack["covariance"])[1].flip(2)
        for at, state in enumerate(states):
            state.setdefault("step", 0)
            state.update({name: tensor[at] for name, tensor in stack.items()})
        # A parameter is in one stack only: the views of an older one would no longer be moved.
        own = set(key)
        self._stacks = {other: found for other, found in self._stacks.items() if own.isdisjoint(other)} | {key: stack}
        return stack


def is_weight(tensor: Tensor) -> bool:
    """Whether rows and columns mix: kernels and linear layers. A table of gains, one row a rate point, is none: turning
    its basis would push the rows that a step did not use."""
    return tensor.ndim == 4 and tensor[0].numel() > 1 or tensor.ndim == 2 and min(tensor.shape) >= 16


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, each (n, ., .), in bfloat16 if it is large and this device is faster so: the noise is far below that of
    the gradients."""
    if a.shape[1] < 256 or best_dtype(a.device) != torch.bfloat16:
        return a @ b
    return (a.bfloat16() @ b.bfloat16()).float()
