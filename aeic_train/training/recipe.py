"""A recipe: the stages of one training run, read from TOML. This module explains every field of a stage."""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

OPTIMIZERS = ("soap", "adamw")


@dataclass(frozen=True)
class Stage:
    """One stage of training: its parameters, length, data and targets."""

    name: str
    kind: str  # "prior" (stage 0) or "codec"
    steps: int
    crop: int  # pixels a side, a multiple of 64
    batch: int  # crops in memory at once, of each process
    learning_rate: float
    crops_a_step: int | None = None  # of all processes together; batches are accumulated to reach it. None: one batch
    optimizer: str = "soap"  # or "adamw"
    drops: dict[int, float] = field(default_factory=dict)  # step -> learning rate from there on
    decay: float = 0.0  # last share of the steps over which the learning rate falls linearly to a fiftieth
    warmup: int = 200
    clip: float = 1.0  # gradient norm
    explosion: float = 60.0  # steps with a larger norm are skipped: at untrained rate points, passes amplify each other
    weights: dict[str, float] = field(default_factory=dict)  # of losses.PictureLoss
    rates: dict[str, tuple[float, float]] = field(default_factory=dict)  # rate point -> bpp at start, bpp at end
    fall: float = 0.6  # share of the steps in which the bpp goes from start to end
    lambdas: dict[str, float] = field(default_factory=dict)  # rate point -> weight of the rate to start from
    steer: bool = True  # whether lambda follows the bpp of `rates`; if not, it stays what `lambdas` says
    freeze: tuple[str, ...] = ()  # prefixes of the names of frozen parameters
    skip: bool = False  # force residuals under the skip scale to zero, as the coder does
    exact: bool = False  # the entropy model rounds as the exported integers will (docs/determinism.md)
    distill: dict[str, float] = field(default_factory=dict)  # of distillation.Distillation: analysis, latent, unet
    adversarial: float = 0.0  # weight of the discriminator's term (losses/discriminator.py)
    synthetic: float = 0.0  # share of synthetic crops (synthetic.py); their bits count in the rate control
    repeat: dict[str, int] = field(default_factory=dict)  # file name prefix -> times that an epoch shows such a picture
    spread_from: int | None = None  # first copy this rate point's prior to all the others


@dataclass(frozen=True)
class Recipe:
    """A profile, a seed, and the stages in order."""

    profile: str
    seed: int
    average: float  # of the moving average of the weights, per step
    stages: tuple[Stage, ...]
    teacher: str | None = None  # profile of the teacher, if a stage distils
    fresh: tuple[str, ...] = ()  # prefixes of the names of parameters that start at random despite --init
    official: bool = False  # SD-Turbo's UNet with LoRA and the halved picture decoder, both frozen (full_size.py)
    checkpointing: bool = False  # blocks are computed again in the backward pass, which saves memory

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a TOML file. ``ValueError`` with a message of one line for a missing file, invalid TOML, or a wrong
        key."""
        try:
            data = tomllib.loads(path.read_text())
        except OSError as error:
            raise ValueError(f"recipe {path} cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"recipe {path} is not TOML: {error}") from None
        tables = data.pop("stage", None)
        if not isinstance(tables, list) or not tables:
            raise ValueError(f"recipe {path} has no stage: begin each with [[stage]]")
        stages = []
        for table in tables:
            _check_keys(Stage, table, f"{path}, stage {table.get('name')!r}")
            table["rates"] = {rate: tuple(span) for rate, span in table.get("rates", {}).items()}
            table["freeze"] = tuple(table.get("freeze", ()))
            where = f"{path}, stage {table['name']!r}"
            table["drops"] = _drops(table.get("drops", {}), where)
            stage = Stage(**table)
            if stage.optimizer not in OPTIMIZERS:
                raise ValueError(f"{where}: optimizer {stage.optimizer!r}, choose from {', '.join(OPTIMIZERS)}")
            if not stage.steer and (lost := sorted(set(stage.rates) - set(stage.lambdas))):
                raise ValueError(f"{where}: steer is off, so lambdas needs the rate points {', '.join(lost)}")
            stages.append(stage)
        _check_keys(cls, data | {"stages": stages}, str(path))
        return cls(stages=tuple(stages), fresh=tuple(data.pop("fresh", ())), **data)


def _drops(table: dict[str, float], where: str) -> dict[int, float]:
    try:
        return {int(step): float(rate) for step, rate in table.items()}
    except (TypeError, ValueError, AttributeError):
        raise ValueError(f"{where}: drops needs steps and learning rates, such as {{ 28000 = 1e-5 }}") from None


def _check_keys(kind: type[Stage] | type[Recipe], table: dict[str, Any], where: str) -> None:
    known = {f.name for f in fields(kind)}
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if unknown := sorted(set(table) - known):
        raise ValueError(f"{where}: unknown keys: {', '.join(unknown)}")
    if missing := sorted(required - set(table)):
        raise ValueError(f"{where}: missing keys: {', '.join(missing)}")
