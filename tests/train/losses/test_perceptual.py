"""The published perceptual terms, with stand-ins for the libraries."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from aeic_train.losses import perceptual
from aeic_train.losses.picture_loss import Jitter, PictureLoss

CPU = torch.device("cpu")


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def create(name: str, device: Any, as_loss: bool) -> Any:
        asked[name] = as_loss
        return lambda made, original: (made - original).abs().mean((1, 2, 3))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 5)

        @classmethod
        def from_pretrained(cls, name: str, local_files_only: bool) -> Any:
            asked[name] = local_files_only
            return cls()

        def forward(self, x: torch.Tensor) -> Any:
            assert x.shape[1:] == (3, 224, 224)
            return types.SimpleNamespace(image_embeds=self.layer(x.mean((2, 3))))

    pyiqa, transformers = types.ModuleType("pyiqa"), types.ModuleType("transformers")
    pyiqa.create_metric = create
    transformers.CLIPVisionModelWithProjection = Encoder
    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    return asked


def test_each_term_moves_the_picture(libraries: dict[str, Any]) -> None:
    terms = perceptual.build(["mse", *perceptual.TERMS], CPU)
    assert libraries == {"lpips-vgg": True, "dists": True, perceptual.CLIP_MODEL: True}
    loss = PictureLoss(terms)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    for name in perceptual.TERMS:
        x_hat = (x * 0.5).requires_grad_()
        terms_of = loss(x_hat, x, {name: 2.0}, Jitter())
        terms_of.total.backward()
        assert float(terms_of.total.detach()) == pytest.approx(2 * float(terms_of.parts[name]))
        assert x_hat.grad is not None and float(x_hat.grad.abs().sum()) > 0
        assert set(perceptual.TERMS) & set(terms_of.parts) == {name}


def test_a_term_whose_library_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert perceptual.build(["mse", "features"], CPU) == {}
    with pytest.raises(ValueError, match=r"'lpips': no package 'pyiqa': pip install pyiqa; or remove it"):
        perceptual.build(["lpips"], CPU)
    with pytest.raises(ValueError, match=r"'clip': no package 'transformers'"):
        perceptual.build(["clip"], CPU)
