"""The training loop: resumable, one JSON line in the log every 50 steps, sample grids, a moving average of the weights.

aeic train --recipe nano.toml --photographs DIR --validation DIR --run runs/nano
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from aeic import profiles
from aeic.profiles import Profile
from aeic_nets.integer.training import disable_quantisation, enable_quantisation
from aeic_nets.network import AEIC
from aeic_train.checkpoints import load_weights, spread_rate_prior
from aeic_train.data.photographs import Crops, Photographs
from aeic_train.losses.decoder_prior import Prior
from aeic_train.losses.discriminator import Adversary
from aeic_train.losses.distillation import Distillation
from aeic_train.losses.picture_loss import Jitter, Judgement, PictureLoss
from aeic_train.training.rate_controller import Steering
from aeic_train.training.recipe import Recipe, Stage
from aeic_train.training.run_log import Journal
from aeic_train.training.samples import save_samples
from aeic_train.training.schedule import learning_rate, parameter_groups
from aeic_train.training.soap import Soap

LOG_STEPS = 50
SAVE_SECONDS = 180
SAMPLE_STEPS = 500
AVERAGE_STEPS = 4
"""Steps between two moves of the average: it reads and writes all weights, and a slow average loses nothing."""
EXPLOSION = 60.0
"""Steps of a larger gradient are left out: at rate points never trained, four passes can feed on themselves."""


class Trainer:
    """Runs a recipe's stages in order from wherever ``run``/state.pt stands."""

    def __init__(
        self,
        recipe: Recipe,
        photographs: Path,
        validation: Path,
        run: Path,
        init: Path | None = None,
        teacher: Path | None = None,
        profile: Profile | None = None,
    ) -> None:
        """``profile``: instead of the recipe's, for sizes that no bundle may have (ablation.py)."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.run = recipe, run
        run.mkdir(parents=True, exist_ok=True)
        self.photographs = Photographs(photographs, run.parent / "cache")
        self.validation = Photographs(validation, run.parent / "cache")
        self.model = AEIC(profile or profiles.profile(recipe.profile)).to(memory_format=torch.channels_last)
        if init:
            load_weights(self.model, init, recipe.fresh)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.prior = Prior(self.model).to(memory_format=torch.channels_last)
        self.loss = PictureLoss()
        self.steering = Steering()
        self.adversary = Adversary() if any(stage.adversarial for stage in recipe.stages) else None
        self.distillation = self._distillation(teacher)
        self.stage_index = self.step = self.total_steps = 0
        self.seconds = 0.0  # of training, over all restarts
        self.optimizer: torch.optim.Optimizer | None = None
        self.optimizer_state: dict[str, object] | None = None
        if (run / "state.pt").exists():
            self._resume()

    # -- state ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the whole state beside the old one, then renames: a kill at any moment leaves one good file."""
        state = {
            "prior": self.prior.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
            "steering": self.steering.state_dict(),
            "adversary": self.adversary.state_dict() if self.adversary else None,
            "distillation": self.distillation.state_dict() if self.distillation else None,
            "position": [self.stage_index, self.step, self.total_steps],
            "seconds": self.seconds,
        }
        torch.save(state, self.run / "state.partial")
        (self.run / "state.partial").rename(self.run / "state.pt")

    def _resume(self) -> None:
        state = torch.load(self.run / "state.pt", weights_only=True)
        self.prior.load_state_dict(state["prior"])
        self.average.load_state_dict(state["average"])
        self.steering.load_state_dict(state["steering"])
        if self.adversary and state["adversary"]:
            self.adversary.load_state_dict(state["adversary"])
        if self.distillation and state["distillation"]:
            self.distillation.load_state_dict(state["distillation"])
        self.seconds = state["seconds"]
        self.stage_index, self.step, self.total_steps = state["position"]
        self.optimizer_state = state["optimizer"]

    def _distillation(self, teacher: Path | None) -> Distillation | None:
        if not any(stage.distill for stage in self.recipe.stages):
            return None
        if not (self.recipe.teacher and teacher):
            raise ValueError("the recipe distils: name the teacher's profile in it, and its weights by --teacher")
        return Distillation.from_weights(self.model, self.recipe.teacher, teacher)

    # -- one stage -----------------------------------------------------------------------------------------------

    def train(self) -> None:
        while self.stage_index < len(self.recipe.stages):
            self._train_stage(self.recipe.stages[self.stage_index])
            self.stage_index, self.step, self.optimizer = self.stage_index + 1, 0, None
            self.save()

    def _train_stage(self, stage: Stage) -> None:
        if self.step == 0:
            self.steering.lambdas |= stage.lambdas
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
        seed = self.recipe.seed + self.total_steps
        crops = iter(Crops(self.photographs, stage.crop, stage.batch, seed, stage.synthetic))
        disable_quantisation(self.model.codec)
        if stage.exact:
            enable_quantisation(self.model.codec, [self._latents(next(crops), int(rate)) for rate in stage.rates])
        journal = Journal(self.run / "log.jsonl")
        started = saved = time.monotonic()
        while self.step < stage.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = group["speed"] * learning_rate(stage, self.step)
            journal.add(self._step(stage, next(crops), parameters))
            self.step += 1
            self.total_steps += 1
            if self.total_steps % AVERAGE_STEPS == 0 or self.step == stage.steps:
                self._move_average()
            if self.step % LOG_STEPS == 0:
                now = time.monotonic()
                self.seconds += now - started
                journal.write(self._place(stage), stage.steps, now - started)
                started = now
            if self.step % SAMPLE_STEPS == 0:
                save_samples(self.average, self.validation, self.run / "samples", f"{self.total_steps:06d}", stage)
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()

    @torch.no_grad()
    def _latents(self, x: Tensor, rate: int) -> Tensor:
        """y of a batch with the gain of a rate point: what the integers' steps are calibrated on."""
        codec = self.model.codec
        y: Tensor = codec.g_a(x).float() * codec.gains(rate)[0]
        return y

    def _step(self, stage: Stage, x: Tensor, parameters: list[Tensor]) -> dict[str, float]:
        if stage.kind == "prior":
            judgement, loss, parts = self._prior_loss(stage, x)
        else:
            judgement, loss, parts = self._codec_loss(stage, x, random.choice(list(stage.rates)))
        assert self.optimizer is not None
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, stage.clip))
        healthy = norm < EXPLOSION  # false for nan too
        if healthy:
            self.optimizer.step()
            if stage.adversarial and self.adversary:
                parts["discriminator"] = self.adversary.learn(judgement.target_maps, judgement.maps)
        return parts | {"skipped": float(not healthy), "gradient": norm}

    def _prior_loss(self, stage: Stage, x: Tensor) -> tuple[Judgement, Tensor, dict[str, float]]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            picture = self.prior(x)
        judgement = self.loss(picture.float(), x, stage.weights, Jitter.draw())
        return judgement, judgement.total, judgement.numbers()

    def _codec_loss(self, stage: Stage, x: Tensor, rate: str) -> tuple[Judgement, Tensor, dict[str, float]]:
        """Of one batch at one rate point: picture, bits, and what the stage adds to them."""
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        weight = self.steering.weight(stage, rate, self.step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, analysis, taps = self.model.with_taps(x, int(rate))
        judgement = self.loss(out["x_hat"].float(), x, stage.weights, Jitter.draw())
        parts, loss = judgement.numbers(), judgement.total
        if stage.distill and self.distillation:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                distances = self.distillation(x, int(rate), out["y_hat"], analysis, taps)
            for name, share in stage.distill.items():
                loss = loss + share * distances[name]
                parts[f"distil_{name}"] = float(distances[name].detach())
        if stage.adversarial and self.adversary:
            loss = loss + stage.adversarial * self.adversary.generator_loss(judgement.maps)
        bpp = (out["y_bits"] + out["z_bits"]) / pixels
        hard = float(out["y_bits_hard"] + out["z_bits_hard"]) / pixels
        # Relative to the middle rate, so that no rate point's gradient drowns the others'.
        loss = (loss + weight * bpp) / math.sqrt(max(weight, 0.1))
        self.steering.follow(rate, hard)
        parts |= {"bpp": float(bpp.detach()), f"bpp_{rate}": hard, f"lambda_{rate}": weight}
        parts |= {f"mse_{rate}": parts["mse"], f"features_{rate}": parts["features"]}
        # The implicit pruning of the paper: lower rates by latents of less variance, not by a coarser step.
        parts[f"log_variance_{rate}"] = float(out["y"].detach().var().log())
        parts["z_bpp"] = float(out["z_bits_hard"]) / pixels
        return judgement, loss, parts

    def _move_average(self) -> None:
        keep = min(self.recipe.average, (1 + self.total_steps) / (10 + self.total_steps)) ** AVERAGE_STEPS
        with torch.no_grad():
            averages = list(self.average.parameters())
            torch._foreach_lerp_(averages, [p.detach() for p in self.model.parameters()], 1 - keep)

    def _place(self, stage: Stage) -> dict[str, object]:
        """Where the run stands, as its log says it."""
        hours = round(self.seconds / 3600, 4)
        return {"stage": stage.name, "step": self.step, "total": self.total_steps, "hours": hours}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="aeic train", description=__doc__)
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parents[1] / "recipes" / "nano.toml")
    parser.add_argument("--photographs", type=Path, required=True, help="folder to train on")
    parser.add_argument(
        "--validation", type=Path, required=True, help="folder whose first pictures fill the sample grids"
    )
    parser.add_argument("--run", type=Path, default=Path("runs/nano"), help="folder for state, log and samples")
    parser.add_argument("--init", type=Path, help="weights.safetensors of a bundle, or a run's state.pt, to start from")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--teacher", type=Path, help="the same of the teacher, where the recipe distils")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    recipe = Recipe.load(options.recipe)
    Trainer(recipe, options.photographs, options.validation, options.run, options.init, options.teacher).train()


if __name__ == "__main__":
    main()
