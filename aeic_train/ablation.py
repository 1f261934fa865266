"""Ablations: the same short training in several arms that differ in one thing, judged at equal bits.

    aeic bench ablation distillation --init SE.safetensors --teacher ME.safetensors --photographs DIR \\
        --validation DIR --out out/ablation

Every arm starts from the same weights and sees the same crops. Its curve is estimated from likelihoods (estimate.py) on
the validation pictures. Arms are resumable; those already trained are only judged. Writes OUT/NAME.json (CompressAI's
shape, which ``make results`` draws) and NAME.md. The last line is JSON: BD-rates against the first arm, in percent.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from aeic_train import curves, estimate
from aeic_train.loop import Trainer
from aeic_train.metrics import Judges
from aeic_train.recipe import Recipe

RECIPE = Path(__file__).parent / "recipes" / "ablation.toml"
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "distillation": {
        "none": {},
        "encoder": {"distill": {"analysis": 0.5, "latent": 0.5}},
        "both": {"distill": {"analysis": 0.5, "latent": 0.5, "unet": 0.5}},
    },
    "losses": {
        "mse": {"weights": {"mse": 20.0}},
        "features": {"weights": {"mse": 20.0, "features": 0.2}},
        "features-low": {"weights": {"mse": 20.0, "features": 0.2, "low": 0.5}},
        "all": {"weights": {"mse": 20.0, "features": 0.2, "low": 0.5, "texture": 0.05}},
    },
    "adversarial": {
        "none": {"freeze": ("codec.g_a", "codec.h_", "codec.adapter", "codec.g_c", "codec.entropy", "codec.log_")},
        "adversarial": {
            "freeze": ("codec.g_a", "codec.h_", "codec.adapter", "codec.g_c", "codec.entropy", "codec.log_"),
            "adversarial": 0.1,
        },
    },
}
"""By ablation and arm: what its stage has that the recipe's has not."""


def train_arm(recipe: Recipe, changes: dict[str, Any], run: Path, options: argparse.Namespace) -> Trainer:
    """A finished (or resumed) training of one arm."""
    stages = tuple(replace(stage, steps=options.steps or stage.steps, **changes) for stage in recipe.stages)
    folders = options.photographs, options.validation, run
    trainer = Trainer(replace(recipe, stages=stages), *folders, init=options.init, teacher=options.teacher)
    trainer.train()
    return trainer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="aeic bench ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=ARMS)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="weights.safetensors that every arm starts from")
    parser.add_argument("--teacher", type=Path, help="weights.safetensors of the teacher (distillation)")
    parser.add_argument("--steps", type=int, help="of every arm, instead of the recipe's")
    parser.add_argument("--pictures", type=int, default=20, help="of the validation folder, evenly picked")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/ablation"))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    recipe, judges = Recipe.load(options.recipe), Judges()
    rates = sorted({int(rate) for stage in recipe.stages for rate in stage.rates})
    points: dict[str, list[curves.Point]] = {}
    for arm, changes in ARMS[options.name].items():
        print(f"arm {arm}", flush=True)
        trainer = train_arm(recipe, changes, options.out / "runs" / f"{options.name}-{arm}", options)
        pictures = trainer.validation.pictures
        chosen = pictures[:: max(1, len(pictures) // options.pictures)][: options.pictures]
        points[arm] = [estimate.point(trainer.average, chosen, rate, judges) for rate in rates]
    report(options.name, points, options.out)


def report(name: str, points: dict[str, list[curves.Point]], out: Path) -> None:
    """Writes the curves and the table, prints the table and the JSON line."""
    first, *others = points
    gains = {arm: {m: curves.bd_rate(points[first], points[arm], m) for m in curves.COMPARED} for arm in others}
    text = f"estimated from likelihoods, arms of the ablation {name!r}"
    documents = [curves.document(f"{name}-{arm}", text, curve) for arm, curve in points.items()]
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(documents, indent=1) + "\n")
    lines = [f"BD-rate against {first!r}, percent (negative: fewer bits)", ""]
    lines += ["| arm | " + " | ".join(curves.COMPARED) + " |", "|---" * (len(curves.COMPARED) + 1) + "|"]
    for arm, row in gains.items():
        cells = ("-" if row[m] is None else f"{row[m]:+.1f}" for m in curves.COMPARED)
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    (out / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(json.dumps({"ablation": name, "against": first, "bd_rates": gains}))


if __name__ == "__main__":
    main()
