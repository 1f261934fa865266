from __future__ import annotations

import pytest

from aeic_train.training.lambda_controller import LambdaController
from aeic_train.training.recipe import Stage

STAGE = Stage("x", "codec", 100, 64, 1, 1e-3, rates={"0": (0.04, 0.01), "1": (0.08, 0.08)}, fall=0.5)


def test_the_target_falls_and_then_stands() -> None:
    lambda_controller = LambdaController()
    for step, target in ((0, 0.04), (25, 0.02), (50, 0.01), (99, 0.01)):
        lambda_controller.weight(STAGE, "0", step)
        assert lambda_controller.targets["0"] == pytest.approx(target)


def test_too_many_bits_raise_the_weight_and_too_few_lower_it() -> None:
    lambda_controller = LambdaController()
    before = lambda_controller.weight(STAGE, "1", 0)
    lambda_controller.follow("1", 0.16)
    raised = lambda_controller.weight(STAGE, "1", 1)
    assert raised > before
    lambda_controller.follow("1", 0.04)
    assert lambda_controller.weight(STAGE, "1", 2) < raised


def test_a_new_rate_point_starts_from_a_known_one_by_the_power_law() -> None:
    lambda_controller = LambdaController()
    lambda_controller.lambdas["1"] = 2.0
    lambda_controller.weight(STAGE, "1", 0)
    assert lambda_controller.weight(STAGE, "0", 0) == pytest.approx(2.0 * 2**1.5)
