"""log.jsonl of a run: the means of what the last steps gave, a line every so often, shown on the screen too."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any


class Journal:
    """Gathers the parts of each step's loss; ``write`` appends their means and forgets them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._steps = 0

    def add(self, parts: dict[str, float]) -> None:
        """One step's numbers; not every step has all of them."""
        self._steps += 1
        for name, value in parts.items():
            self._sums[name].append(value)

    def write(self, place: dict[str, Any], of: int, seconds: float) -> None:
        """A line that begins with ``place``; the stage has ``of`` steps, the last line was ``seconds`` ago."""
        means = {name: round(sum(v) / len(v), 6) for name, v in sorted(self._sums.items())}
        each = seconds / self._steps
        psnr = round(10 * math.log10(4 / means["mse"]), 3)
        line = place | {"seconds_per_step": round(each, 3), "psnr": psnr, **means}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = " ".join(f"{k} {v:.4g}" for k, v in means.items())
        print(f"{place['stage']} {place['step']}/{of} {each:.2f} s/step psnr {psnr:.2f} {shown}", flush=True)
        self._sums.clear()
        self._steps = 0
