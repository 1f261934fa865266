"""log.jsonl of a run: one line with the means of a number of steps. Each line is also printed."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from aeic_train.workers import Workers


class RunLog:
    """Collects the parts of each step's loss. ``write`` appends their means to the log and clears them.

    Parts stay tensors until then: turning one into a number waits for the device that computes it.
    """

    def __init__(self, path: Path, workers: Workers | None = None, tensorboard: Path | None = None) -> None:
        """The first of ``workers`` writes the means of all. ``tensorboard`` is a folder for the same values as
        events."""
        self.path, self._workers = path, workers or Workers()
        self._events = _event_writer(tensorboard) if tensorboard and self._workers.first else None
        self._parts: dict[str, list[Tensor | float]] = defaultdict(list)
        self._steps = 0

    def add(self, parts: Mapping[str, Tensor | float]) -> None:
        """Add the numbers of one step (scalars). A step may lack some of them."""
        self._steps += 1
        for name, value in parts.items():
            self._parts[name].append(value)

    def write(self, place: dict[str, Any], of: int, seconds: float) -> None:
        """Write a line that begins with ``place``. The stage has ``of`` steps, and the last line was ``seconds``
        ago."""
        sums = {name: (sum(map(float, values)), len(values)) for name, values in self._parts.items()}
        each = seconds / self._steps
        self._parts.clear()
        self._steps = 0
        gathered = self._workers.gather(f"log/{place['total']}", sums)
        if not gathered:
            return
        means = {}
        for name in sorted({name for found in gathered for name in found}):
            pairs = [found[name] for found in gathered if name in found]
            means[name] = round(sum(total for total, _ in pairs) / sum(count for _, count in pairs), 6)
        psnr = round(10 * math.log10(4 / means["mse"]), 3)
        line = place | {"seconds_per_step": round(each, 3), "psnr": psnr, **means}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = " ".join(f"{k} {v:.4g}" for k, v in means.items())
        print(f"{place['stage']} {place['step']}/{of} {each:.2f} s/step psnr {psnr:.2f} {shown}", flush=True)
        if self._events:
            for name, mean in (means | {"psnr": psnr, "seconds_per_step": each}).items():
                self._events.add_scalar(name, mean, place["total"])
            self._events.flush()


def _event_writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # TensorBoard is an optional dependency

    return SummaryWriter(str(folder))
