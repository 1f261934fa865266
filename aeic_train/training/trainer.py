"""The training loop: seeded and resumable, in one process or in several that average their gradients.

    aeic train --recipe nano.toml --photographs DIR --validation DIR --run runs/nano --processes 2

It writes one JSON line to the log every 50 steps and at the end of a stage, draws sample grids, and keeps a moving
average of the weights. docs/training.md explains recipes, stages and losses.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.util
import math
import os
import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from aeic import profiles
from aeic.profiles import Profile
from aeic_nets.integer.model import Site
from aeic_nets.integer.training import disable_quantisation, enable_quantisation, set_sites
from aeic_nets.network import AEIC
from aeic_nets.runtime.precision import autocast
from aeic_train.checkpoints import ENTROPY, load_weights, spread_rate_prior
from aeic_train.data.photographs import Crops, CropSettings, Photographs
from aeic_train.losses.decoder_prior import DecoderPrior
from aeic_train.losses.discriminator import DiscriminatorTrainer
from aeic_train.losses.distillation import Distillation
from aeic_train.losses.picture_loss import Jitter, LossTerms, PictureLoss
from aeic_train.training.rate_controller import RateController
from aeic_train.training.recipe import Recipe, Stage
from aeic_train.training.run_log import RunLog
from aeic_train.training.samples import save_samples
from aeic_train.training.schedule import learning_rate, parameter_groups
from aeic_train.training.soap import Soap
from aeic_train.workers import StopSignal, Workers, launch

LOG_STEPS = 50
SAVE_SECONDS = 180
SAMPLE_STEPS = 500
AVERAGE_STEPS = 4
"""Steps between two updates of the moving average. An update reads and writes all weights."""
EXPLOSION = 60.0
"""Steps with a larger gradient norm are skipped. At untrained rate points, the four passes can amplify each other."""


Losses = tuple[LossTerms, Tensor, dict[str, Tensor | float], Tensor]
"""The losses of a batch: the terms of the picture loss, the total, its parts for the log, and the bpp of the rounded
latents."""


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The inputs and the folder of a run."""

    photographs: Path
    """Folder of the pictures to train on."""
    validation: Path
    """Folder whose first pictures fill the sample grids."""
    run: Path
    """Folder for the state, the log and the samples."""
    init: Path | None = None
    """A bundle's ``weights.safetensors`` or a run's ``state.pt`` to start from."""
    teacher: Path | None = None
    """The same for the teacher, if the recipe distils."""
    device: torch.device | str = "cpu"
    tensorboard: bool = False
    """Whether the log is also written to ``run``/tensorboard."""


class Trainer:
    """Runs the stages of a recipe in order. It continues from the position in ``run``/state.pt, if there is one.

    Every step draws its random numbers from its own seed, so a run that was stopped and resumed takes the same steps as
    one that was not. With one thread on one kind of processor, two runs are equal to the bit.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: RunSettings,
        *,
        profile: Profile | None = None,
        workers: Workers | None = None,
        stop: StopSignal | None = None,
    ) -> None:
        """``profile`` replaces the recipe's, for sizes that no bundle may have (ablation.py)."""
        torch.manual_seed(recipe.seed)
        self.random = random.Random()
        run = settings.run
        self.recipe, self.run, self.device = recipe, run, torch.device(settings.device)
        self.workers, self.stop = workers or Workers(), stop or StopSignal()
        run.mkdir(parents=True, exist_ok=True)
        self.run_log = RunLog(run / "log.jsonl", self.workers, run / "tensorboard" if settings.tensorboard else None)
        self.photographs = Photographs(settings.photographs, run.parent / "cache")
        self.validation = Photographs(settings.validation, run.parent / "cache")
        self.model = AEIC(profile or profiles.profile(recipe.profile))
        self.model.to(self.device, memory_format=torch.channels_last)
        if settings.init:
            load_weights(self.model, settings.init, recipe.fresh)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.prior = DecoderPrior(self.model).to(self.device, memory_format=torch.channels_last)
        self.loss = PictureLoss().to(self.device)
        self.rate_controller = RateController()
        self.discriminator = (
            DiscriminatorTrainer(self.device) if any(stage.adversarial for stage in recipe.stages) else None
        )
        self.distillation = self._distillation(settings.teacher)
        self.sites: dict[str, Site] | None = None
        """The places where the entropy model rounds, once it is trained with rounding. They stay while its weights are
        frozen."""
        self.stage_index = self.step = self.total_steps = 0
        self.seconds = 0.0  # of training, over all restarts
        self.optimizer: torch.optim.Optimizer | None = None
        self.optimizer_state: dict[str, object] | None = None
        if (run / "state.pt").exists():
            self._resume()

    # -- state ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the whole state to a second file, then rename it, so that a kill at any moment leaves one good file.

        Only the first of several processes writes; the others have the same state.
        """
        if not self.workers.first:
            return
        state = {
            "prior": self.prior.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
            "steering": self.rate_controller.state_dict(),
            "adversary": self.discriminator.state_dict() if self.discriminator else None,
            "distillation": self.distillation.state_dict() if self.distillation else None,
            "sites": {name: dataclasses.asdict(site) for name, site in self.sites.items()} if self.sites else None,
            "position": [self.stage_index, self.step, self.total_steps],
            "seconds": self.seconds,
        }
        torch.save(state, self.run / "state.partial")
        (self.run / "state.partial").rename(self.run / "state.pt")

    def _resume(self) -> None:
        state = torch.load(self.run / "state.pt", weights_only=True, map_location=self.device)
        self.prior.load_state_dict(state["prior"])
        self.average.load_state_dict(state["average"])
        self.rate_controller.load_state_dict(state["steering"])
        if self.discriminator and state["adversary"]:
            self.discriminator.load_state_dict(state["adversary"])
        if self.distillation and state["distillation"]:
            self.distillation.load_state_dict(state["distillation"])
        if sites := state.get("sites"):  # not in the states of older versions
            self.sites = {name: Site(**site) for name, site in sites.items()}
        self.seconds = state["seconds"]
        self.stage_index, self.step, self.total_steps = state["position"]
        self.optimizer_state = state["optimizer"]

    def _distillation(self, teacher: Path | None) -> Distillation | None:
        if not any(stage.distill for stage in self.recipe.stages):
            return None
        if not (self.recipe.teacher and teacher):
            raise ValueError("the recipe distils: name the teacher's profile in it, and its weights by --teacher")
        return Distillation.from_weights(self.model, self.recipe.teacher, teacher).to(self.device)

    # -- one stage -----------------------------------------------------------------------------------------------

    def train(self) -> bool:
        """Train to the end of the recipe. False if ``stop`` was set before that; the state is then saved."""
        while self.stage_index < len(self.recipe.stages):
            if not self._train_stage(self.recipe.stages[self.stage_index]):
                return False
            self.stage_index, self.step, self.optimizer = self.stage_index + 1, 0, None
            self.save()
        return True

    def _train_stage(self, stage: Stage) -> bool:
        """Train the rest of a stage. False if it was stopped before its end."""
        if self.step == 0:
            self.rate_controller.lambdas |= stage.lambdas
        if self.step == 0 and stage.spread_from is not None:
            spread_rate_prior(self.model, stage.spread_from)
            spread_rate_prior(self.average, stage.spread_from)
        self.model.codec.zero_skipped = stage.skip
        modules: list[nn.Module] = [self.prior if stage.kind == "prior" else self.model]
        if stage.distill and self.distillation:
            modules.append(self.distillation)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(stage.freeze) if stage.freeze else True)
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.optimizer = Soap(parameter_groups(self.model, parameters), lr=stage.learning_rate)
        if self.optimizer_state:
            self.optimizer.load_state_dict(self.optimizer_state)
            self.optimizer_state = None
        self._set_quantisation(stage)
        crops = iter(self._crops(stage, self.workers, first=self.step))
        started = saved = time.monotonic()
        while self.step < stage.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = group["speed"] * learning_rate(stage, self.step)
            self._seed_step()
            parts, stopped = self._step(stage, next(crops), parameters)
            self.run_log.add(parts)
            self.step += 1
            self.total_steps += 1
            if self.total_steps % AVERAGE_STEPS == 0 or self.step == stage.steps:
                self._move_average()
            if self.step % LOG_STEPS == 0 or self.step == stage.steps:
                now = time.monotonic()
                self.seconds += now - started
                self.run_log.write(self._place(stage), stage.steps, now - started)
                started = now
            if self.step % SAMPLE_STEPS == 0 and self.workers.first:
                save_samples(self.average, self.validation, self.run / "samples", f"{self.total_steps:06d}", stage)
            if stopped and self.step < stage.steps:
                self.seconds += time.monotonic() - started
                self.save()
                return False
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        return True

    def _crops(self, stage: Stage, workers: Workers, first: int = 0) -> Crops:
        seed = f"{self.recipe.seed}/{self.stage_index}"
        settings = CropSettings(stage.crop, stage.batch, seed, stage.synthetic, stage.repeat)
        return Crops(self.photographs, settings, first=first, workers=workers, device=self.device)

    def _seed_step(self) -> None:
        """Seed a step's random numbers from the recipe's seed, the step and the process, independent of earlier
        steps."""
        self.random.seed(f"{self.recipe.seed}/{self.total_steps}/{self.workers.rank}")
        torch.manual_seed(self.random.getrandbits(63))

    def _set_quantisation(self, stage: Stage) -> None:
        """Round the entropy model if the stage is exact, or if an earlier stage was exact and the bits are frozen
        since."""
        codec = self.model.codec
        disable_quantisation(codec)
        moves = any(p.requires_grad for name, p in self.model.named_parameters() if name.startswith(ENTROPY))
        if stage.exact and (self.step == 0 or not self.sites):
            # All processes use the crops of the first, because they need the same sites.
            crops = self._crops(stage, Workers())
            latents = [
                self._latents(crops.to_device(crops.pixels(number)), int(rate))
                for number, rate in enumerate(stage.rates)
            ]
            self.sites = enable_quantisation(codec, latents)
        elif self.sites and (stage.exact or not moves):
            set_sites(codec, self.sites)
        else:
            self.sites = None

    @torch.no_grad()
    def _latents(self, x: Tensor, rate: int) -> Tensor:
        """y of a batch with the gain of a rate point applied, to calibrate the steps of the integers."""
        codec = self.model.codec
        y: Tensor = codec.g_a(x).float() * codec.gains(rate)[0]
        return y

    def _step(self, stage: Stage, x: Tensor, parameters: list[Tensor]) -> tuple[dict[str, Tensor | float], bool]:
        """Take one step on ``x``. Returns the parts of its loss, and whether a process was asked to stop."""
        rates = list(stage.rates)
        at = self.random.randrange(len(rates)) if rates else 0
        jitter = Jitter.draw(self.random)
        if stage.kind == "prior":
            judgement, loss, parts, hard = self._prior_loss(stage, x, jitter)
        else:
            judgement, loss, parts, hard = self._codec_loss(stage, x, rates[at], jitter)
        assert self.optimizer is not None
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        own = torch.stack([hard, hard.new_tensor(float(at)), hard.new_tensor(float(self.stop.received))])
        of_all = self.workers.average(parameters, own)
        norm = torch.nn.utils.clip_grad_norm_(parameters, stage.clip)
        gradient, *numbers = torch.cat([norm.detach()[None], of_all.reshape(-1)]).tolist()  # the only wait of a step
        seen = list(zip(*[iter(numbers)] * 3, strict=True))
        if stage.kind == "codec":
            for bits, which, _ in seen:
                self.rate_controller.follow(rates[int(which)], bits)
        healthy = gradient < EXPLOSION  # false for nan too
        if healthy:
            self.optimizer.step()
            if stage.adversarial and self.discriminator:
                parts["discriminator"] = self.discriminator.learn(judgement.target_maps, judgement.maps, self.workers)
        return parts | {"skipped": float(not healthy), "gradient": gradient}, any(stop for _, _, stop in seen)

    def _prior_loss(self, stage: Stage, x: Tensor, jitter: Jitter) -> Losses:
        with autocast(self.device):
            picture = self.prior(x)
        judgement = self.loss(picture.float(), x, stage.weights, jitter)
        return judgement, judgement.total, dict(judgement.parts), x.new_zeros(())

    def _codec_loss(self, stage: Stage, x: Tensor, rate: str, jitter: Jitter) -> Losses:
        """The losses of one batch at one rate point: picture, bits, and the stage's additional terms."""
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        # The targets of all rate points move, because each process may draw another one.
        weights = {each: self.rate_controller.weight(stage, each, self.step) for each in stage.rates}
        weight = weights[rate]
        with autocast(self.device):
            out, analysis, taps = self.model.with_taps(x, int(rate))
        judgement = self.loss(out["x_hat"].float(), x, stage.weights, jitter)
        parts: dict[str, Tensor | float] = dict(judgement.parts)
        loss = judgement.total
        if stage.distill and self.distillation:
            with autocast(self.device):
                distances = self.distillation(x, int(rate), out["y_hat"], analysis, taps)
            for name, share in stage.distill.items():
                loss = loss + share * distances[name]
                parts[f"distil_{name}"] = distances[name].detach()
        if stage.adversarial and self.discriminator:
            loss = loss + stage.adversarial * self.discriminator.generator_loss(judgement.maps)
        bpp = (out["y_bits"] + out["z_bits"]) / pixels
        hard = (out["y_bits_hard"] + out["z_bits_hard"]) / pixels
        # Relative to the middle rate, so that the gradient of one rate point does not dominate.
        loss = (loss + weight * bpp) / math.sqrt(max(weight, 0.1))
        parts |= {"bpp": bpp.detach(), f"bpp_{rate}": hard, f"lambda_{rate}": weight}
        parts |= {f"mse_{rate}": parts["mse"], f"features_{rate}": parts["features"]}
        # The implicit pruning of the paper: low rates come from latents with less variance, not from a coarser step.
        parts[f"log_variance_{rate}"] = out["y"].detach().var().log()
        parts["z_bpp"] = out["z_bits_hard"] / pixels
        return judgement, loss, parts, hard

    def _move_average(self) -> None:
        keep = min(self.recipe.average, (1 + self.total_steps) / (10 + self.total_steps)) ** AVERAGE_STEPS
        with torch.no_grad():
            averages = list(self.average.parameters())
            torch._foreach_lerp_(averages, [p.detach() for p in self.model.parameters()], 1 - keep)

    def _place(self, stage: Stage) -> dict[str, object]:
        """The position of the run, as the log has it."""
        hours = round(self.seconds / 3600, 4)
        return {"stage": stage.name, "step": self.step, "total": self.total_steps, "hours": hours}


def _train(workers: Workers, recipes: list[Recipe], options: argparse.Namespace) -> None:
    """Run one process: it trains the recipes one after the other, each from the weights of the one before."""
    torch.set_num_threads(max(1, options.threads // workers.count))
    init = options.init
    with StopSignal() as stop:
        for path, recipe in zip(options.recipe, recipes, strict=True):
            run = options.run if len(recipes) == 1 else options.run / path.stem
            settings = RunSettings(
                options.photographs,
                options.validation,
                run,
                init=init,
                teacher=options.teacher,
                device=options.device,
                tensorboard=options.tensorboard,
            )
            trainer = Trainer(recipe, settings, workers=workers, stop=stop)
            if not trainer.train():
                if workers.first:
                    print(f"stopped after step {trainer.total_steps}: run the same command to continue", flush=True)
                return
            workers.wait()  # for the state
            init = run / "state.pt"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="aeic train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        nargs="+",
        default=[Path(__file__).parents[1] / "recipes" / "nano.toml"],
        help="several are trained one after the other, each in a folder of --run with the recipe's name",
    )
    parser.add_argument("--photographs", type=Path, required=True, help="folder to train on")
    parser.add_argument(
        "--validation", type=Path, required=True, help="folder whose first pictures fill the sample grids"
    )
    parser.add_argument("--run", type=Path, default=Path("runs/nano"), help="folder for state, log and samples")
    parser.add_argument("--init", type=Path, help="weights.safetensors of a bundle, or a run's state.pt, to start from")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="number of processes on this machine; each computes a batch in every step",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of all processes together")
    parser.add_argument("--device", default="cpu", help="device of torch: cpu, cuda, cuda:1 ...")
    parser.add_argument(
        "--teacher", type=Path, help="weights of the teacher, in the form of --init, if the recipe distils"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write the log to RUN/tensorboard as well")
    options = parser.parse_args(argv)
    try:
        recipes = [Recipe.load(path) for path in options.recipe]
        for recipe in recipes:
            profiles.profile(recipe.profile)
        torch.device(options.device)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    if options.processes < 1:
        parser.error("--processes: at least 1")
    for folder in (options.photographs, options.validation):
        if not folder.is_dir():
            parser.error(f"no folder {folder}")
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        parser.error('TensorBoard is not installed: pip install "aeic[tensorboard]"')
    if len({path.stem for path in options.recipe}) < len(recipes):
        parser.error("--recipe: give each recipe once")
    launch(_train, (recipes, options), options.processes)


if __name__ == "__main__":
    main()
