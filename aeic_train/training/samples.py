"""Sample grids: a few validation pictures, each above its reconstruction, drawn during training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aeic.profiles import PICTURE_MULTIPLE
from aeic_nets.network import AEIC
from aeic_nets.runtime.precision import autocast
from aeic_train.data.photographs import Photographs
from aeic_train.training.recipe import Stage

COUNT = 8
SIDE = 256


@torch.no_grad()
def save_samples(model: AEIC, photographs: Photographs, folder: Path, name: str, stage: Stage) -> None:
    """Writes ``folder``/``name``.jpg: COUNT centre crops of validation pictures and their reconstructions."""
    if stage.kind == "prior":
        return
    folder.mkdir(parents=True, exist_ok=True)
    assert SIDE % PICTURE_MULTIPLE == 0
    device = next(model.parameters()).device
    columns = []
    every = max(1, len(photographs) // COUNT)
    for picture in photographs.pictures[::every][:COUNT]:
        top, left = (picture.shape[0] - SIDE) // 2, (picture.shape[1] - SIDE) // 2
        crop = picture[max(0, top) :, max(0, left) :][:SIDE, :SIDE]
        if crop.shape[:2] != (SIDE, SIDE):
            continue
        x = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].to(device).float().div(127.5).sub(1)
        rows = [crop]
        for rate in stage.rates:
            with autocast(device):
                x_hat = model(x, int(rate))["x_hat"][0].float().clamp(-1, 1)
            rows.append(x_hat.add(1).mul(127.5).round().byte().permute(1, 2, 0).cpu().numpy())
        columns.append(np.concatenate(rows))
    Image.fromarray(np.concatenate(columns, axis=1)).save(folder / f"{name}.jpg", quality=88)
