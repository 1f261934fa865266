"""One training step of AEIC-ME at full size on synthetic official files, with the memory that it took.

    python -m tests.train.training.full_size_step OFFICIAL RUN PHOTOGRAPHS

OFFICIAL is a folder of tests/support/models/official_files.py. The crop is small, so that the weights are most of the
memory. The last line is JSON: peak resident memory in GB, seconds of the step, and what it learned.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from aeic_train.training import trainer as loop
from aeic_train.training.full_size import Sources
from aeic_train.training.recipe import Recipe
from aeic_train.training.trainer import RunSettings, Trainer

CROP = 128
RECIPE = Path(loop.__file__).parents[1] / "recipes" / "me.toml"


def main() -> None:
    official, run, photographs = map(Path, sys.argv[1:4])
    torch.set_num_threads(1)
    recipe = Recipe.load(RECIPE)
    # Without the terms whose weights are files.
    stage = replace(recipe.stages[0], steps=1, crop=CROP, batch=1, crops_a_step=1, weights={"mse": 2.0})
    sources = Sources(official / "sd-turbo", official / "halfDecoder.ckpt")
    trainer = Trainer(replace(recipe, stages=(stage,)), RunSettings(photographs, photographs, run, sources=sources))
    before = {name: p.detach().clone() for name, p in trainer.model.codec.named_parameters()}
    loaded, started = _peak_gb(), time.monotonic()
    assert trainer.train()
    moved = sum(not torch.equal(p, before[name]) for name, p in trainer.model.codec.named_parameters())
    found = {"peak_gb": _peak_gb(), "loaded_gb": loaded, "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps(found | {"crop": CROP, "moved": moved, "tensors": len(before)}))


def _peak_gb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


if __name__ == "__main__":
    main()
