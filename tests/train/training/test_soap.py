from __future__ import annotations

import pytest
import torch

from aeic_train.training.soap import Soap


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5,), (4, 3, 3, 3), (8, 1, 3, 3), (300, 300)])
def test_it_descends_a_badly_scaled_bowl(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    target, weight = torch.randn(shape), torch.logspace(-2, 1, torch.Size(shape).numel()).reshape(shape)
    x = torch.nn.Parameter(torch.zeros(shape))
    optimizer = Soap([x], lr=0.05)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (weight * (x - target).square()).sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    # A large matrix turns its basis slowly: there a third in 150 steps is what to expect.
    assert losses[-1] < (0.4 if len(target) > 256 else 0.05) * losses[0]


def test_rows_without_gradient_stand_still() -> None:
    torch.manual_seed(0)
    gains = torch.nn.Parameter(torch.zeros(6, 128))
    optimizer = Soap([gains], lr=0.01)
    for _ in range(50):
        gains.grad = torch.zeros(6, 128)
        gains.grad[4] = torch.randn(128)
        optimizer.step()
    assert float(gains[4].detach().abs().max()) > 0
    assert float(gains[[0, 1, 2, 3, 5]].detach().abs().max()) == 0


def test_its_state_survives_a_restart() -> None:
    torch.manual_seed(0)
    one = torch.nn.Parameter(torch.randn(4, 6))
    two = torch.nn.Parameter(one.detach().clone())
    first, second = Soap([one], lr=0.01), Soap([two], lr=0.01)
    gradients = torch.randn(25, 4, 6)
    for gradient in gradients[:13]:
        one.grad, two.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    resumed = Soap([two], lr=0.01)
    resumed.load_state_dict(second.state_dict())
    for gradient in gradients[13:]:
        one.grad, two.grad = gradient.clone(), gradient.clone()
        first.step()
        resumed.step()
    torch.testing.assert_close(one, two)


def test_weights_of_one_shape_together_are_moved_as_each_alone() -> None:
    torch.manual_seed(0)
    shapes = [(6, 4, 3, 3), (5,), (6, 4, 3, 3), (20, 20), (6, 4, 3, 3), (20, 20)]
    together = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    alone = [torch.nn.Parameter(parameter.detach().clone()) for parameter in together]
    all_of_them, each = Soap(together, lr=0.01), [Soap([parameter], lr=0.01, refresh=1) for parameter in alone]
    all_of_them.param_groups[0]["refresh"] = 1  # or the place in the list would say when a basis is turned
    for step in range(12):
        for at, (a, b) in enumerate(zip(together, alone, strict=True)):
            # One has no gradient at first, as a part that a stage leaves out, so the stacks change.
            a.grad = None if at == 2 and step < 5 else torch.randn(a.shape)
            b.grad = None if a.grad is None else a.grad.clone()
        all_of_them.step()
        for optimizer in each:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
