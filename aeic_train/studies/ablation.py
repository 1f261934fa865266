"""Ablations: short trainings that differ in one setting, compared at equal bits. Each training is an *arm*.

    aeic bench ablation distillation --init SE.safetensors --teacher runs/teacher/state.pt --photographs DIR \\
        --validation DIR --out out/ablation
    aeic bench ablation spatial --init SE.safetensors ...          # also: losses, adversarial

Every arm starts from the same weights and sees the same crops. Its curve is estimated from likelihoods
(evaluation/likelihood_estimate.py) on the validation pictures. Arms are resumable; finished arms are only evaluated.
The command writes OUT/NAME.json, .md, .svg and .png (reports/ablation_plots.py). The last line is JSON: BD-rates
against the first arm, in percent.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from aeic.profiles import NANO, Profile
from aeic_train.checkpoints import ENTROPY
from aeic_train.evaluation import likelihood_estimate, rd_curves
from aeic_train.evaluation.metrics import MetricSuite
from aeic_train.reports import ablation_plots
from aeic_train.training.recipe import Recipe
from aeic_train.training.trainer import RunSettings, Trainer

RECIPE = Path(__file__).parents[1] / "recipes" / "ablation.toml"
BITS = (*ENTROPY, "codec.log_inverse")
"""All parts that the bits depend on. They are frozen in ablations of the picture alone."""
TEXTURED = {"mse": 5.0, "features": 0.4, "low": 0.5, "texture": 0.4, "grid": 300.0}
"""The loss weights of stage 9 (nano_texture.toml), from which the ablations of the picture alone continue."""
DEEP = TEXTURED | {"deep": 0.2}
FINISH = {"crop": 192, "batch": 4, "learning_rate": 3e-4, "freeze": BITS}
"""Settings of all arms in which only the decoder learns."""
ENCODER = ("codec.g_a", "codec.adapter", "codec.g_c")
LAMBDAS = {"0": 15.0, "2": 6.0, "4": 3.0, "5": 2.0}
"""First lambdas for a new encoder. Those of the trained model would suppress its latents before it has learned."""


@dataclass(frozen=True)
class Ablation:
    """For each arm, the changes to the recipe's stage or profile; and the parts that start at random in all arms."""

    about: str
    arms: dict[str, dict[str, Any]]
    stage: dict[str, Any] = field(default_factory=dict)  # of all arms
    fresh: tuple[str, ...] = ()
    profiles: dict[str, Profile] = field(default_factory=dict)


def _without(*names: str) -> dict[str, float]:
    return {name: weight for name, weight in DEEP.items() if name not in names}


ABLATIONS = {
    "distillation": Ablation(
        "Distillation. Encoder and context model are new, hyperprior and decoder were trained before.",
        {
            "none": {},
            "encoder": {"distill": {"analysis": 0.5, "latent": 0.5}},
            "both": {"distill": {"analysis": 0.5, "latent": 0.5, "unet": 0.5}},
        },
        stage={"lambdas": LAMBDAS},
        fresh=ENCODER,
    ),
    "spatial": Ablation(
        "Spatial compression ratio. The codec is new; UNet and picture decoder, which work at 1/8 scale whatever the "
        "latents' grid, were trained before. A stage of g_a and one of g_s more or less; all else alike.",
        {"32x": {}, "16x": {}, "64x": {}},
        # Crops of 256 pixels: with smaller ones, the latents of 64x would be 2 by 2.
        stage={"crop": 256, "batch": 2, "steps": 250, "lambdas": LAMBDAS},
        fresh=("codec.",),
        profiles={
            "16x": replace(NANO, name="nano-16x", analysis_widths=(16, 32, 96, 128), synthesis_widths=(128, 96)),
            "64x": replace(
                NANO,
                name="nano-64x",
                analysis_widths=(16, 32, 96, 128, 128, 128),
                synthesis_widths=(128, 128, 128, 96),
            ),
        },
    ),
    "losses": Ablation(
        "Losses, one left out at a time. From trained weights, the decoder alone learns: the bits are the same.",
        {
            "all": {},
            "without-adversarial": {"adversarial": 0.0},
            "without-texture": {"weights": _without("texture", "deep")},
            "without-features": {"weights": _without("features")},
            "without-low": {"weights": _without("low")},
            "mse": {"weights": {"mse": 5.0}, "adversarial": 0.0},
        },
        stage={"steps": 150, "adversarial": 0.1, "weights": DEEP} | FINISH,
    ),
    "adversarial": Ablation(
        "The discriminator, and local statistics of deep features. From trained weights, the decoder alone learns: the "
        "bits are the same.",
        {
            "neither": {},
            "adversarial": {"adversarial": 0.1},
            "deep": {"weights": DEEP},
            "both": {"adversarial": 0.1, "weights": DEEP},
        },
        stage={"steps": 250, "weights": TEXTURED} | FINISH,
    ),
}


def train_arm(recipe: Recipe, profile: Profile | None, run: Path, options: argparse.Namespace) -> Trainer:
    """Train one arm, or resume it, to the end."""
    settings = RunSettings(options.photographs, options.validation, run, init=options.init, teacher=options.teacher)
    trainer = Trainer(recipe, settings, profile=profile)
    trainer.train()
    return trainer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="aeic bench ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=ABLATIONS)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="weights.safetensors or state.pt that every arm starts from")
    parser.add_argument("--teacher", type=Path, help="the same for the teacher (distillation)")
    parser.add_argument("--steps", type=int, help="steps of every arm, instead of the recipe's")
    parser.add_argument(
        "--pictures", type=int, default=12, help="number of validation pictures, evenly spaced in the folder"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/ablation"))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    ablation, recipe, metric_suite = ABLATIONS[options.name], Recipe.load(options.recipe), MetricSuite()
    points: dict[str, list[rd_curves.Point]] = {}
    notes: list[str] = []
    for arm, changes in ablation.arms.items():
        print(f"arm {arm}", flush=True)
        of_all = ablation.stage | ({"steps": options.steps} if options.steps else {})
        stages = tuple(replace(stage, **of_all | changes) for stage in recipe.stages)
        rates = sorted({int(rate) for stage in stages for rate in stage.rates})
        changed = replace(recipe, stages=stages, fresh=ablation.fresh if options.init else ())
        run = options.out / "runs" / f"{options.name}-{arm}"
        trainer = train_arm(changed, ablation.profiles.get(arm), run, options)
        pictures = trainer.validation.pictures
        chosen = pictures[:: max(1, len(pictures) // options.pictures)][: options.pictures]
        points[arm] = [likelihood_estimate.point(trainer.average, chosen, rate, metric_suite) for rate in rates]
        notes.append(f"{arm}: {trainer.total_steps} steps, {trainer.seconds / 60:.1f} minutes")
        sizes = ", ".join(f"{stage.batch} crops of {stage.crop} pixels" for stage in stages)
        text = f"{ablation.about} {sizes} a step ({'; '.join(notes)}). Mean over {len(chosen)} validation pictures."
        ablation_plots.write(options.name, text, points, options.out)
    if trainer.distillation:
        points["teacher"] = [
            likelihood_estimate.point(trainer.distillation.teacher, chosen, rate, metric_suite) for rate in rates
        ]
        ablation_plots.write(options.name, text, points, options.out)
    print((options.out / f"{options.name}.md").read_text())
    print(
        json.dumps({"ablation": options.name, "against": next(iter(points)), "bd_rates": ablation_plots.gains(points)})
    )


if __name__ == "__main__":
    main()
