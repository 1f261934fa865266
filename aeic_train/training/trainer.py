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
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from aeic import profiles
from aeic.errors import remedy
from aeic.profiles import Profile
from aeic_nets.integer.model import Site
from aeic_nets.integer.training import disable_quantisation, enable_quantisation, set_sites
from aeic_nets.network import AEIC
from aeic_nets.runtime.precision import autocast, best_dtype
from aeic_train.checkpoints import ENTROPY, load_weights, spread_rate_prior
from aeic_train.data.photographs import Crops, CropSettings, Photographs
from aeic_train.losses import perceptual
from aeic_train.losses.decoder_prior import DecoderPrior
from aeic_train.losses.discriminator import DiscriminatorTrainer
from aeic_train.losses.distillation import Distillation
from aeic_train.losses.picture_loss import Jitter, LossTerms, PictureLoss
from aeic_train.training import cost_plan, full_size, snapshots
from aeic_train.training.lambda_controller import LambdaController
from aeic_train.training.recipe import Recipe, Stage
from aeic_train.training.run_log import RunLog
from aeic_train.training.samples import save_samples
from aeic_train.training.schedule import learning_rate, parameter_groups
from aeic_train.training.soap import Soap
from aeic_train.workers import StopSignal, Workers, launch, under_torchrun

LOG_STEPS = 50
SAVE_SECONDS = 180
SAMPLE_STEPS = 500
AVERAGE_STEPS = 4
"""Steps between two updates of the moving average. An update reads and writes all weights."""


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
    sources: full_size.Sources | None = None
    """SD-Turbo and the halved decoder, if the recipe is ``official``."""
    download: bool = False
    """Whether libraries of perceptual terms may fetch their weights."""
    device: torch.device | str = "cpu"
    tensorboard: bool = False
    """Whether the log is also written to ``run``/tensorboard."""
    snapshots: int | None = None
    """Steps between two copies of the weights in ``run``/snapshots (training/snapshots.py). None: no copies."""


class Trainer:
    """Runs the stages of a recipe in order. It continues from the position in ``run``/state.pt, if there is one.

    Every step draws its random numbers from its own seed, so a run that was stopped and resumed takes the same steps as
    one that was not. With one thread on one kind of processor, two runs are bit-identical.
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
        self.sources, self.snapshots = settings.sources, settings.snapshots
        self.workers, self.stop = workers or Workers(), stop or StopSignal()
        run.mkdir(parents=True, exist_ok=True)
        self.run_log = RunLog(run / "log.jsonl", self.workers, run / "tensorboard" if settings.tensorboard else None)
        self.photographs = Photographs(settings.photographs, run.parent / "cache")
        self.validation = Photographs(settings.validation, run.parent / "cache")
        self.model = self._new_model(profile or profiles.profile(recipe.profile))
        if settings.init:
            if recipe.official:
                full_size.load_trained(self.model, settings.init)
            else:
                load_weights(self.model, settings.init, recipe.fresh)
        self.base = full_size.frozen(self.model)
        """The names of the parameters that never learn. They are in no state."""
        self.base_fingerprint = full_size.fingerprint(self.model) if self.base else None
        shared = {id(parameter): parameter for parameter in self.model.parameters() if not parameter.requires_grad}
        self.average = copy.deepcopy(self.model, shared).requires_grad_(False)
        has_prior = any(stage.kind == "prior" for stage in recipe.stages) or not recipe.official
        prior = DecoderPrior(self.model) if has_prior else _WithoutPrior(self.model)
        self.prior = prior.to(self.device, memory_format=torch.channels_last)
        terms = perceptual.build(
            sorted({n for s in recipe.stages for n in s.weights}), self.device, download=settings.download
        )
        self.loss = PictureLoss(terms).to(self.device)
        self.lambda_controller = LambdaController()
        self.discriminator = (
            DiscriminatorTrainer(self.device) if any(stage.adversarial for stage in recipe.stages) else None
        )
        self.distillation = self._distillation(settings)
        if recipe.checkpointing:
            full_size.checkpoint_blocks(self.model)
        self.sites: dict[str, Site] | None = None
        """The places where the entropy model rounds, once it is trained with rounding. They stay while its weights are
        frozen."""
        self.stage_index = self.step = self.total_steps = 0
        self.seconds = 0.0  # of training, over all restarts
        self.optimizer: torch.optim.Optimizer | None = None
        self.optimizer_state: dict[str, object] | None = None
        if (run / "state.pt").exists():
            self._resume()

    def _new_model(self, profile: Profile) -> AEIC:
        """A network with its initial weights on the device."""
        if not self.recipe.official:
            return AEIC(profile).to(self.device, memory_format=torch.channels_last)
        if self.sources is None:
            raise ValueError("the recipe starts from the official files: give --sd-turbo and --half-decoder")
        model = full_size.build(profile, self.sources)
        if best_dtype(self.device) == torch.bfloat16:
            full_size.store_frozen(model, torch.bfloat16)
        return model.to(self.device, memory_format=torch.channels_last)

    # -- state ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the whole state to a second file, then rename it, so that a kill at any moment leaves one good file.

        Only the first of several processes writes; the others have the same state.
        """
        if not self.workers.first:
            return
        state = {
            "prior": full_size.only_trained(self.prior.state_dict(), self.base, "model."),
            "average": full_size.only_trained(self.average.state_dict(), self.base),
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
            "steering": self.lambda_controller.state_dict(),
            "adversary": self.discriminator.state_dict() if self.discriminator else None,
            "distillation": self.distillation.state_dict() if self.distillation else None,
            "sites": {name: dataclasses.asdict(site) for name, site in self.sites.items()} if self.sites else None,
            "position": [self.stage_index, self.step, self.total_steps],
            "seconds": self.seconds,
            "base": self.base_fingerprint,
        }
        torch.save(state, self.run / "state.partial")
        (self.run / "state.partial").rename(self.run / "state.pt")
        if self.base and self.step == 0:  # at the end of a stage
            full_size.write_checkpoint(self.average, self.run / "checkpoint.safetensors")

    def _resume(self) -> None:
        state = torch.load(self.run / "state.pt", weights_only=True, map_location=self.device)
        if state.get("base") != self.base_fingerprint:
            raise ValueError(f"{self.run / 'state.pt'} was trained on other official files: give the same ones")
        self._load(self.prior, state["prior"], "model.")
        self._load(self.average, state["average"])
        self.lambda_controller.load_state_dict(state["steering"])
        if self.discriminator and state["adversary"]:
            self.discriminator.load_state_dict(state["adversary"])
        if self.distillation and state["distillation"]:
            self.distillation.load_state_dict(state["distillation"])
        if sites := state.get("sites"):  # not in the states of older versions
            self.sites = {name: Site(**site) for name, site in sites.items()}
        self.seconds = state["seconds"]
        self.stage_index, self.step, self.total_steps = state["position"]
        self.optimizer_state = state["optimizer"]

    def _load(self, module: nn.Module, state: dict[str, Tensor], prefix: str = "") -> None:
        """Load a state that lacks exactly the parameters that never learn."""
        missing, unexpected = module.load_state_dict(state, strict=not self.base)
        if wrong := [*unexpected, *(name for name in missing if name.removeprefix(prefix) not in self.base)]:
            raise ValueError(f"{self.run / 'state.pt'} does not fit the recipe: {wrong[0]}")

    def _distillation(self, settings: RunSettings) -> Distillation | None:
        if not any(stage.distill for stage in self.recipe.stages):
            return None
        if not (self.recipe.teacher and settings.teacher):
            raise ValueError("the recipe distils: name the teacher's profile in it, and its weights by --teacher")
        if not self.recipe.official:
            made = Distillation.from_weights(self.model, self.recipe.teacher, settings.teacher)
            return made.to(self.device)
        teacher = self._new_model(profiles.profile(self.recipe.teacher))
        full_size.load_trained(teacher, settings.teacher)
        full_size.share_frozen(self.model, teacher)
        return Distillation(self.model, teacher).to(self.device)

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
            self.lambda_controller.lambdas |= stage.lambdas
        if self.step == 0 and stage.spread_from is not None:
            spread_rate_prior(self.model, stage.spread_from)
            spread_rate_prior(self.average, stage.spread_from)
        self.model.codec.zero_skipped = stage.skip
        modules: list[nn.Module] = [self.prior if stage.kind == "prior" else self.model]
        if stage.distill and self.distillation:
            modules.append(self.distillation)
        for name, parameter in self.model.named_parameters():
            learns = name not in self.base and not (stage.freeze and name.startswith(stage.freeze))
            parameter.requires_grad_(learns)
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        groups = parameter_groups(self.model, parameters)
        kind = torch.optim.AdamW if stage.optimizer == "adamw" else Soap
        self.optimizer = kind(groups, lr=stage.learning_rate)
        if self.optimizer_state:
            self.optimizer.load_state_dict(self.optimizer_state)
            self.optimizer_state = None
        self._set_quantisation(stage)
        crops = iter(self._crops(stage, self.workers, first=self.step * self._batches(stage)))
        started = saved = time.monotonic()
        while self.step < stage.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = group["speed"] * learning_rate(stage, self.step)
            self._seed_step()
            parts, stopped = self._step(stage, crops, parameters)
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
            if self.snapshots and (self.total_steps % self.snapshots == 0 or self.step == stage.steps):
                self._snapshot(stage)
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

    def _step(
        self, stage: Stage, crops: Iterator[Tensor], parameters: list[Tensor]
    ) -> tuple[dict[str, Tensor | float], bool]:
        """Take one step on the next batches. Returns the parts of its loss, and whether a process was asked to stop."""
        rates = list(stage.rates)
        at = self.random.randrange(len(rates)) if rates else 0
        assert self.optimizer is not None
        self.optimizer.zero_grad(set_to_none=True)
        found: list[Losses] = []
        count = self._batches(stage)
        for _ in range(count):
            x, jitter = next(crops), Jitter.draw(self.random)
            if stage.kind == "prior":
                losses = self._prior_loss(stage, x, jitter)
            else:
                losses = self._codec_loss(stage, x, rates[at], jitter)
            (losses[1] / count if count > 1 else losses[1]).backward()
            found.append(losses)
        judgement, _, parts, hard = found[-1]
        if len(found) > 1:
            parts = {name: sum(losses[2][name] for losses in found) / len(found) for name in parts}
            hard = torch.stack([losses[3] for losses in found]).mean()
        own = torch.stack([hard, hard.new_tensor(float(at)), hard.new_tensor(float(self.stop.received))])
        of_all = self.workers.average(parameters, own)
        norm = torch.nn.utils.clip_grad_norm_(parameters, stage.clip)
        gradient, *numbers = torch.cat([norm.detach()[None], of_all.reshape(-1)]).tolist()  # the only wait of a step
        seen = list(zip(*[iter(numbers)] * 3, strict=True))
        if stage.kind == "codec" and stage.steer:
            for bits, which, _ in seen:
                self.lambda_controller.follow(rates[int(which)], bits)
        healthy = gradient < stage.explosion  # false for nan too
        if healthy:
            self.optimizer.step()
            if stage.adversarial and self.discriminator:
                parts["discriminator"] = self.discriminator.learn(judgement.target_maps, judgement.maps, self.workers)
        return parts | {"skipped": float(not healthy), "gradient": gradient}, any(stop for _, _, stop in seen)

    def _batches(self, stage: Stage) -> int:
        """Batches of this process in a step."""
        at_once = stage.batch * self.workers.count
        if stage.crops_a_step is None:
            return 1
        if stage.crops_a_step % at_once:
            raise ValueError(
                f"stage {stage.name!r}: {stage.crops_a_step} crops a step are not a multiple of {at_once} at once"
            )
        return stage.crops_a_step // at_once

    def _prior_loss(self, stage: Stage, x: Tensor, jitter: Jitter) -> Losses:
        with autocast(self.device):
            picture = self.prior(x)
        judgement = self.loss(picture.float(), x, stage.weights, jitter)
        return judgement, judgement.total, dict(judgement.parts), x.new_zeros(())

    def _codec_loss(self, stage: Stage, x: Tensor, rate: str, jitter: Jitter) -> Losses:
        """The losses of one batch at one rate point: picture, bits, and the stage's additional terms."""
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        # The targets of all rate points move, because each process may draw another one.
        if stage.steer:
            weights = {each: self.lambda_controller.weight(stage, each, self.step) for each in stage.rates}
            weight = weights[rate]
        else:
            weight = stage.lambdas[rate]
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
        loss = loss + weight * bpp
        if stage.steer:  # relative to the middle rate, so that the gradient of one rate point does not dominate
            loss = loss / math.sqrt(max(weight, 0.1))
        parts |= {"bpp": bpp.detach(), f"bpp_{rate}": hard, f"lambda_{rate}": weight}
        parts |= {f"mse_{rate}": parts["mse"], f"features_{rate}": parts["features"]}
        # The implicit pruning of the paper: low rates come from latents with less variance, not from a coarser step.
        parts[f"log_variance_{rate}"] = out["y"].detach().var().log()
        parts["z_bpp"] = out["z_bits_hard"] / pixels
        return judgement, loss, parts, hard

    def _move_average(self) -> None:
        keep = min(self.recipe.average, (1 + self.total_steps) / (10 + self.total_steps)) ** AVERAGE_STEPS
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.model.named_parameters(), strict=True)
            moving = [(average, p.detach()) for average, (name, p) in pairs if name not in self.base]
            torch._foreach_lerp_([average for average, _ in moving], [p for _, p in moving], 1 - keep)

    def _snapshot(self, stage: Stage) -> None:
        if self.workers.first and stage.kind == "codec":
            place = snapshots.RunPosition(stage.name, self.total_steps, sorted(int(rate) for rate in stage.rates))
            snapshots.write(self.average, self.run / "snapshots", place, self.base)

    def _place(self, stage: Stage) -> dict[str, object]:
        """The position of the run, as the log has it."""
        hours = round(self.seconds / 3600, 4)
        return {"stage": stage.name, "step": self.step, "total": self.total_steps, "hours": hours}


class _WithoutPrior(nn.Module):
    """In the place of :class:`DecoderPrior` where no stage trains one. States have the same names."""

    def __init__(self, model: AEIC) -> None:
        super().__init__()
        self.model = model


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
                sources=_sources(options),
                download=options.download,
                device=options.device,
                tensorboard=options.tensorboard,
                snapshots=options.snapshots,
            )
            trainer = Trainer(recipe, settings, workers=workers, stop=stop)
            if not trainer.train():
                if workers.first:
                    print(f"stopped after step {trainer.total_steps}: run the same command to continue", flush=True)
                return
            workers.wait()  # for the state
            init = run / "state.pt"


def _sources(options: argparse.Namespace) -> full_size.Sources | None:
    if options.sd_turbo is None or options.half_decoder is None:
        return None
    return full_size.Sources(options.sd_turbo, options.half_decoder)


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
    parser.add_argument("--photographs", type=Path, help="folder to train on")
    parser.add_argument("--validation", type=Path, help="folder whose first pictures fill the sample grids")
    parser.add_argument("--plan", action="store_true", help="only print the memory, FLOPs and hours that it takes")
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
    parser.add_argument("--sd-turbo", type=Path, help="SD-Turbo's folder, for recipes of full size")
    parser.add_argument("--half-decoder", type=Path, help="halfDecoder.ckpt, for recipes of full size")
    parser.add_argument("--download", action="store_true", help="let libraries fetch the weights of perceptual terms")
    parser.add_argument("--tensorboard", action="store_true", help="write the log to RUN/tensorboard as well")
    parser.add_argument(
        "--snapshots", type=int, metavar="STEPS", help="keep the weights every STEPS steps, for aeic bench evolution"
    )
    options = parser.parse_args(argv)
    try:
        recipes = [Recipe.load(path) for path in options.recipe]
        for recipe in recipes:
            profiles.profile(recipe.profile)
            if recipe.official and not options.plan and _sources(options) is None:
                raise ValueError(f"{recipe.profile} starts from the official files: give --sd-turbo and --half-decoder")
        torch.device(options.device)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    if options.plan:
        cost_plan.show(recipes)
        return
    if options.photographs is None or options.validation is None:
        parser.error("the following arguments are required: --photographs, --validation")
    if options.processes < 1:
        parser.error("--processes: at least 1")
    if options.snapshots is not None and options.snapshots < 1:
        parser.error("--snapshots: at least 1")
    for folder in (options.photographs, options.validation):
        if not folder.is_dir():
            parser.error(f"no folder {folder}")
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        parser.error(f"TensorBoard is not installed: {remedy('tensorboard')}")
    if len({path.stem for path in options.recipe}) < len(recipes):
        parser.error("--recipe: give each recipe once")
    if under_torchrun():
        if options.processes != 1:
            parser.error("--processes: torchrun starts the processes")
        if options.device == "cuda":
            options.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(options.device)
        workers = Workers.from_environment(torch.device(options.device))
        _train(workers, recipes, options)
        torch.distributed.destroy_process_group()
        return
    launch(_train, (recipes, options), options.processes)


if __name__ == "__main__":
    main()
