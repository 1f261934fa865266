"""Ablations: short trainings that differ in one setting, compared at equal bits. Each training is an *arm*.

    aeic bench ablation distillation --init SE.safetensors --teacher runs/teacher/state.pt --photographs DIR \\
        --validation DIR --out out/ablation
    aeic bench ablation spatial --init SE.safetensors --photographs DIR --set kodak --root KODAK
                                                                    # also: losses, adversarial

Every arm is trained once for each of --seeds seeds. The seed determines crops, noise and the weights that start at
random. All arms of a seed start from the same weights and see the same crops, so they are compared seed by seed; tables
have the mean and the standard deviation over the seeds. Curves are estimated from likelihoods
(evaluation/likelihood_estimate.py) on the validation pictures, or on a public set (--set, --root: the folder is checked
against the set's manifest, and nothing is downloaded).

Ctrl-C saves the state, and the same command continues. Finished runs are neither trained nor evaluated again. The
command writes to OUT:

    NAME.json, .md, .svg, .png    results after every run (reports/ablation_plots.py)
    NAME-set.json                 with --set: name, size and SHA-256 of every picture
    runs/NAME-ARM-SEED/           log and state of a run

The last line is JSON: BD-rates against the first arm, in percent, with their standard deviations.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from aeic import profiles
from aeic.errors import AeicError, InputError
from aeic.profiles import NANO, Profile
from aeic_nets.network import AEIC
from aeic_train.checkpoints import ENTROPY, load_weights
from aeic_train.data import picture_sets
from aeic_train.data.photographs import Photographs
from aeic_train.evaluation import likelihood_estimate, rd_curves
from aeic_train.evaluation.metrics import MetricSuite
from aeic_train.reports import ablation_plots
from aeic_train.reports.ablation_plots import Claim, Run
from aeic_train.training.recipe import Recipe
from aeic_train.training.trainer import RunSettings, Trainer
from aeic_train.workers import StopSignal

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
PERCEPTUAL = ("st_lpips", "efflite_lpips", "efflite_fd")
"""The measures that stand for the paper's LPIPS, DISTS and FID."""
FIDELITY = ("psnr", "ms_ssim")
DEFAULT_PICTURES = 12
"""Number of validation pictures. Of a public set, all are used by default."""


@dataclass(frozen=True)
class Ablation:
    """For each arm, the changes to the recipe's stage or profile; and the parts that start at random in all arms."""

    about: str
    arms: dict[str, dict[str, Any]]
    stage: dict[str, Any] = field(default_factory=dict)  # of all arms
    fresh: tuple[str, ...] = ()
    profiles: dict[str, Profile] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()  # the order in the paper


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
        # Its table on distillation (DIV2K): LPIPS, DISTS and FID improve with each term.
        claims=(Claim("encoder", "none", PERCEPTUAL), Claim("both", "encoder", PERCEPTUAL)),
    ),
    "spatial": Ablation(
        "Spatial compression ratio. The codec is new; UNet and picture decoder, which work at 1/8 scale whatever the "
        "latents' grid, were trained before and are frozen. One stage of g_a and g_s more or less; all else alike.",
        {"32x": {}, "16x": {}, "64x": {}},
        # Crops of 256 pixels: with smaller ones, the latents of 64x would be 2 by 2.
        stage={"crop": 256, "batch": 2, "steps": 300, "lambdas": LAMBDAS, "freeze": ("unet.", "vae.")},
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
        # Its table on spatial compression ratios (Kodak): 32x is best in LPIPS and DISTS, 16x in PSNR and MS-SSIM.
        claims=(
            Claim("32x", "16x", PERCEPTUAL[:2]),
            Claim("32x", "64x", (*PERCEPTUAL[:2], *FIDELITY)),
            Claim("16x", "32x", FIDELITY),
        ),
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


class Stopped(Exception):
    """A signal asked the study to stop. The state of the current run is saved."""


@dataclass(frozen=True)
class Task:
    """One training: an arm with one seed."""

    arm: str
    recipe: Recipe
    profile: Profile | None
    folder: Path


def plan(name: str, recipe: Recipe, options: argparse.Namespace) -> list[Task]:
    """All trainings of an ablation, seed by seed, so that every arm has as many runs as the others at any time."""
    ablation = ABLATIONS[name]
    of_all = ablation.stage | {
        key: value
        for key, value in (("steps", options.steps), ("crop", options.crop), ("batch", options.batch))
        if value is not None
    }
    tasks = []
    for seed in range(recipe.seed, recipe.seed + options.seeds):
        for arm, changes in ablation.arms.items():
            stages = tuple(replace(stage, **of_all | changes) for stage in recipe.stages)
            changed = replace(recipe, seed=seed, stages=stages, fresh=ablation.fresh if options.init else ())
            folder = options.out / "runs" / f"{name}-{arm}-{seed}"
            tasks.append(Task(arm, changed, ablation.profiles.get(arm), folder))
    return tasks


class Study:
    """Trains and evaluates the tasks of one ablation, and writes the results after each."""

    def __init__(self, options: argparse.Namespace, stop: StopSignal) -> None:
        self.options, self.stop = options, stop
        self.metric_suite = MetricSuite()
        self.runs: dict[str, list[Run]] = {}
        self.weights = {
            role: _file_digest(path)
            for role, path in (("init", options.init), ("teacher", options.teacher))
            if path is not None
        }
        options.out.mkdir(parents=True, exist_ok=True)
        self.about_pictures = self._check_set() if options.set else ""
        photographs = Photographs(options.validation, options.out / "runs" / "cache")
        self.names, self.pictures = photographs.evenly(options.pictures)

    def _check_set(self) -> str:
        """Compare the folder with the set's manifest and write what was found. Returns a sentence for the results."""
        seen = picture_sets.check(self.options.set, self.options.root)
        found = picture_sets.document(self.options.set, seen)
        target = self.options.out / f"{self.options.name}-set.json"
        target.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{self.options.set}: {len(seen)} pictures, SHA-256 {found['sha256']} ({target})", flush=True)
        title = picture_sets.manifest(self.options.set).title
        return f" of {title} (SHA-256 of the set {found['sha256'][:16]})"

    def run(self, tasks: list[Task]) -> None:
        """All tasks. ``Stopped`` after a signal."""
        spent: list[float] = []
        for number, task in enumerate(tasks, 1):
            seed = task.recipe.seed
            left = sum(spent) / len(spent) * (len(tasks) - number + 1) / 60 if spent else None
            print(
                f"run {number} of {len(tasks)}: arm {task.arm}, seed {seed}"
                + ("" if left is None else f"; about {left:.0f} minutes left"),
                flush=True,
            )
            started = time.monotonic()
            fresh = self._run(task)
            if fresh:
                spent.append(time.monotonic() - started)
            self._write(tasks)

    def _run(self, task: Task) -> bool:
        """Train and evaluate a task, as far as that is not done. Whether anything was left to do."""
        self._claim(task)
        known = task.folder / "points.json"
        key = {"pictures": self.names, "weights": self.weights}
        if known.exists() and (stored := json.loads(known.read_text()))["of"] == key:
            self.runs.setdefault(task.arm, []).append(Run(**stored["run"]))
            return False
        options = self.options
        settings = RunSettings(
            options.photographs, options.validation, task.folder, init=options.init, teacher=options.teacher
        )
        trainer = Trainer(task.recipe, settings, profile=task.profile, stop=self.stop)
        if not trainer.train():
            raise Stopped
        rates = _rates(task.recipe)
        curve = [self._point(trainer.average, rate) for rate in rates]
        run = Run(curve, task.recipe.seed, trainer.total_steps, round(trainer.seconds / 60, 2))
        partial = known.with_suffix(".partial")
        partial.write_text(json.dumps({"of": key, "run": asdict(run)}) + "\n")
        partial.rename(known)
        self.runs.setdefault(task.arm, []).append(run)
        return True

    def _claim(self, task: Task) -> None:
        """Note the settings of a run in its folder. ``InputError`` if it was trained with others."""
        path = task.folder / "settings.json"
        profile = None if task.profile is None else asdict(task.profile)
        wanted = json.loads(json.dumps({"recipe": asdict(task.recipe), "profile": profile, "weights": self.weights}))
        if path.exists():
            if json.loads(path.read_text()) != wanted:
                raise InputError(f"{task.folder} was trained with other settings: choose another --out, or remove it")
            return
        if (task.folder / "state.pt").exists():
            raise InputError(f"{task.folder} does not say how it was trained: choose another --out, or remove it")
        task.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=1) + "\n")

    def _point(self, model: AEIC, rate: int) -> rd_curves.Point:
        if self.stop.received:
            raise Stopped
        return likelihood_estimate.point(model, self.pictures, rate, self.metric_suite)

    def evaluate_teacher(self, recipe: Recipe, tasks: list[Task]) -> None:
        """Add the curve of the teacher, which is trained once, if arms distil from it."""
        path, name = self.options.teacher, recipe.teacher
        if path is None or name is None or not any(stage.distill for t in tasks for stage in t.recipe.stages):
            return
        known = self.options.out / "runs" / f"{self.options.name}-teacher.json"
        key = {"pictures": self.names, "weights": self.weights}
        if known.exists() and (stored := json.loads(known.read_text()))["of"] == key:
            curve = stored["curve"]
        else:
            print("evaluating the teacher", flush=True)
            teacher = AEIC(profiles.profile(name)).eval().requires_grad_(False)
            load_weights(teacher, path)
            curve = [self._point(teacher, rate) for rate in _rates(recipe)]
            known.write_text(json.dumps({"of": key, "curve": curve}) + "\n")
        self.runs["teacher"] = [Run(curve)]
        self._write(tasks)

    def _write(self, tasks: list[Task]) -> None:
        options, ablation = self.options, ABLATIONS[self.options.name]
        stage = tasks[0].recipe.stages[0]
        crops = "1 crop" if stage.batch == 1 else f"{stage.batch} crops"
        text = (
            f"{ablation.about} A step takes {crops} of {stage.crop} pixels. "
            f"Mean over {len(self.pictures)} pictures{self.about_pictures}."
        )
        ablation_plots.write(options.name, text, self.runs, options.out, ablation.claims)


def _rates(recipe: Recipe) -> list[int]:
    return sorted({int(rate) for stage in recipe.stages for rate in stage.rates})


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="aeic bench ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=ABLATIONS)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--photographs", type=Path, required=True)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--validation", type=Path, help="folder of pictures that the arms are compared on")
    where.add_argument("--set", choices=picture_sets.NAMES, help="instead, a public set that lies in --root")
    parser.add_argument("--root", type=Path, help="folder of the pictures of --set; nothing is downloaded")
    parser.add_argument("--init", type=Path, help="weights.safetensors or state.pt that every arm starts from")
    parser.add_argument("--teacher", type=Path, help="the same for the teacher (distillation)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm: the recipe's seed and the next ones")
    parser.add_argument("--steps", type=int, help="steps of every arm, instead of the recipe's")
    parser.add_argument("--crop", type=int, help="side of the crops in pixels, instead of the recipe's")
    parser.add_argument("--batch", type=int, help="crops of a step, instead of the recipe's")
    parser.add_argument(
        "--pictures",
        type=int,
        help=f"number of pictures, evenly spaced in the folder; by default {DEFAULT_PICTURES}, or all of --set",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/ablation"))
    options = parser.parse_args(argv)
    if (options.set is None) != (options.root is None):
        parser.error("--set and --root belong together: the set's name, and the folder that holds it")
    if options.seeds < 1:
        parser.error("--seeds: at least 1")
    if options.pictures is None and options.set is None:
        options.pictures = DEFAULT_PICTURES
    options.validation = options.validation or options.root
    torch.set_num_threads(options.threads)
    try:
        recipe = Recipe.load(options.recipe)
        with StopSignal() as stop:
            study = Study(options, stop)
            tasks = plan(options.name, recipe, options)
            study.run(tasks)
            study.evaluate_teacher(recipe, tasks)
    except Stopped:
        print("stopped: run the same command to continue", flush=True)
        raise SystemExit(130) from None
    except (AeicError, OSError, ValueError) as error:
        print(f"aeic bench ablation: {error}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 1)) from error
    print((options.out / f"{options.name}.md").read_text())
    against = next(iter(study.runs))
    rates = ablation_plots.gains(study.runs)
    print(json.dumps({"ablation": options.name, "against": against, "bd_rates": rates}))


if __name__ == "__main__":
    main()
