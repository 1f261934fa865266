"""Compares the milestones of a training: quality at equal bits over the hours that each of them had been trained.

    aeic bench milestones DIR1 DIR2 ... --validation DIR --target st_lpips@0.03=0.255 --out out/milestones

A milestone is a bundle, of which ``weights.safetensors`` and ``training_log.jsonl`` are needed; earlier bundles are in
the history of the repository. Every rate point of each milestone is evaluated on the validation pictures, with bits
estimated from likelihoods. The command writes to OUT:

    milestones.json            hours, steps and the points of the curve of each milestone, and the targets
    milestones.md, .svg, .png  quality at equal bits over the hours, the gain with each doubling of the hours, and for
                               each target the hours at which the trend of the milestones would reach it

Milestones that milestones.json already has are not evaluated again. The last line is JSON: the gains per doubling.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from aeic import profiles
from aeic.errors import AeicError, InputError
from aeic_nets.network import AEIC
from aeic_train.checkpoints import load_weights
from aeic_train.data.photographs import Photographs
from aeic_train.evaluation import likelihood_estimate
from aeic_train.evaluation.metrics import MetricSuite
from aeic_train.evaluation.rd_curves import OWN
from aeic_train.reports import milestone_plots, training_curves
from aeic_train.reports.evolution_plots import write


def target_of(text: str) -> dict[str, Any]:
    """``MEASURE@BPP=VALUE`` as {"measure", "bpp", "value"}. ``InputError`` if it is anything else."""
    try:
        measure, rest = text.split("@")
        bpp, value = (float(number) for number in rest.split("="))
    except ValueError:
        raise InputError(f"--target {text}: write MEASURE@BPP=VALUE, as in st_lpips@0.03=0.255") from None
    if measure not in OWN:
        raise InputError(f"--target {text}: the measures are {', '.join(OWN)}")
    if bpp not in milestone_plots.RATES:
        raise InputError(f"--target {text}: the rates are {', '.join(str(rate) for rate in milestone_plots.RATES)}")
    return {"measure": measure, "bpp": bpp, "value": value}


def effort_of(bundle: Path) -> tuple[float, int]:
    """Hours and steps of the training up to this bundle, from the last line of its log."""
    log = bundle / "training_log.jsonl"
    if not log.is_file():
        raise InputError(f"{bundle} has no {log.name}, from which the hours are taken")
    last = training_curves.read(log)[-1]
    return float(last["hours"]), int(last["total"])


def main(argv: list[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="aeic bench milestones", description=__doc__, formatter_class=form)
    parser.add_argument("bundles", type=Path, nargs="+", help="folders of bundles, in any order")
    parser.add_argument("--profile", default="nano", help="profile of the weights")
    parser.add_argument("--validation", type=Path, required=True, help="folder of pictures to evaluate on")
    parser.add_argument("--pictures", type=int, default=12, help="number of pictures, evenly spaced in the folder")
    parser.add_argument("--target", action="append", default=[], help="MEASURE@BPP=VALUE; may be repeated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/milestones"))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    try:
        _run(options)
    except (AeicError, OSError, ValueError) as error:
        print(f"aeic bench milestones: {error}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 1)) from error


def _run(options: argparse.Namespace) -> None:
    targets = [target_of(text) for text in options.target]
    efforts = sorted((*effort_of(bundle), bundle) for bundle in options.bundles)
    names, pictures = Photographs(options.validation, options.out / "cache").evenly(options.pictures)
    path = options.out / "milestones.json"
    known = _known(path, names)
    metric_suite = MetricSuite()
    milestones: list[dict[str, Any]] = []
    profile = profiles.profile(options.profile)
    for number, (hours, steps, bundle) in enumerate(efforts, 1):
        weights = bundle / "weights.safetensors"
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        points = known.get(digest)
        if points is None:
            model = AEIC(profile).eval()
            load_weights(model, weights)
            torch.manual_seed(0)
            points = []
            for rate in range(profile.rates):
                points.append(likelihood_estimate.point(model, pictures, rate, metric_suite))
                done = f"milestone {number} of {len(efforts)}, rate point {rate + 1} of {profile.rates}"
                print(f"{done}: {points[-1]['bpp']:.4f} bpp", flush=True)
        milestones.append({"hours": hours, "steps": steps, "weights": digest, "points": points})
        write(path, {"pictures": names, "targets": targets, "milestones": milestones})
    milestone_plots.draw(path)
    print(json.dumps({"milestones": str(path), "per_doubling": milestone_plots.gains(milestones)}))


def _known(path: Path, pictures: list[str]) -> dict[str, list[dict[str, float]]]:
    """The points of ``path`` by the digest of their weights, if they are of the same pictures."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    if content["pictures"] != pictures:
        raise InputError(f"{path} has results of other pictures: choose another --out, or delete it")
    return {milestone["weights"]: milestone["points"] for milestone in content["milestones"]}


if __name__ == "__main__":
    main()
