"""docs/model.md against the networks: sizes, parameters, and the sections that the code refers to."""

from __future__ import annotations

import math
import re
import runpy
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aeic.passes import _CLASS_OF_GROUP
from aeic.profiles import PROFILES, SCALE_COUNT, SCALE_MAX, SCALE_MIN, SKIP_SCALE, Profile
from aeic.tables import TAIL_WIDTH, Rows, gaussian_rows
from aeic_nets.integer.scale_index import COARSE, FINE, SWITCH, cells, index_table
from aeic_nets.likelihood import LIKELIHOOD_MIN
from aeic_nets.network import AEIC
from aeic_nets.official.keys import LORA_RANK, LORA_SCALING, codec_keys, trained_unet_keys
from aeic_nets.tiling import UNET_TILES, VAE_MARGIN, VAE_TILE
from cloud_decoder.tiling import OVERLAP, WHOLE_PIXELS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "model.md").read_text()


def table(first: str) -> dict[str, dict[str, str]]:
    """[row][profile] of the table whose head begins with ``first``."""
    lines = TEXT[TEXT.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


def sizes(p: Profile) -> dict[str, str]:
    def listed(numbers: tuple[int, ...]) -> str:
        return ", ".join(map(str, numbers))

    attended = tuple(stage for stage, attends in enumerate(p.unet.attention) if attends)
    return {
        "widths of g_a": listed(p.analysis_widths),
        "blocks per stage of g_a": str(p.analysis_depth),
        "M, channels of y": str(p.latent_channels),
        "Cz = M/2, channels of z": str(p.hyper_channels),
        "X, context width": str(p.context_width),
        "context depth": str(p.context_depth),
        "widths of g_s": listed(p.synthesis_widths),
        "l, channels into the UNet": str(p.unet_channels),
        "residual channels": str(p.residual_channels),
        "widths of the UNet": listed(p.unet.widths),
        "UNet stages with attention, besides the middle": listed(attended) or "none",
        "residual blocks a UNet stage": str(p.unet.layers),
        "channels per head": str(p.unet.head_width),
        "groups of the UNet's norms": str(p.unet.norm_groups),
        "widths of the picture decoder": listed(p.vae.widths),
        "residual blocks a decoder stage": str(p.vae.layers),
        "attention in the decoder's middle": "yes" if p.vae.mid_attention else "no",
        "groups of the decoder's norms": str(p.vae.norm_groups),
        "patch, final pixel shuffle": str(p.vae.patch),
        "rate points": str(p.rates),
    }


@cache
def network(name: str) -> AEIC:
    with torch.device("meta"):
        return AEIC(PROFILES[name])


@pytest.mark.parametrize("name", PROFILES)
def test_sizes(name: str) -> None:
    written = table("size")
    assert {row: cells[name] for row, cells in written.items()} == sizes(PROFILES[name])
    assert set(next(iter(written.values()))) == set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_parameters(name: str) -> None:
    model = network(name)
    codec = model.codec
    parts: dict[str, nn.Module] = {
        "g_a": codec.g_a,
        "h_a": codec.h_a,
        "h_s": codec.h_s,
        "adapter_in (4)": codec.adapter_in,
        "g_c": codec.g_c,
        "adapter_out (4)": codec.adapter_out,
        "factorised prior": codec.entropy_bottleneck,
        "g_s": codec.g_s,
        "UNet": model.unet,
        "picture decoder": model.vae,
    }
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()}
    counts["gains"] = sum(p.numel() for p in model.parameters()) - sum(counts.values())
    assert {row: int(cells[name].replace(",", "")) for row, cells in table("parameters").items()} == counts


def test_the_residual_blocks_of_nano() -> None:
    """The worked table of section 5.1."""
    unet: Any = network("nano").unet
    widths = [[(block.conv1.in_channels, block.conv1.out_channels) for block in up.resnets] for up in unet.up_blocks]
    written = [
        [(sum(map(int, a.split("+"))), int(b)) for a, b in re.findall(r"Res\(([\d+]+), (\d+)\)", line)]
        for line in re.findall(r"^\| up \d \| (.*?) \|", TEXT, re.MULTILINE)
    ]
    assert written == widths
    down = [
        (block.conv1.in_channels, block.conv1.out_channels) for stage in unet.down_blocks for block in stage.resnets
    ]
    (line,) = re.findall(r"^\| down 0, 1, 2 \| (.*?) \|", TEXT, re.MULTILINE)
    assert [(int(a), int(b)) for a, b in re.findall(r"Res\((\d+), (\d+)\)", line)] == down


def test_the_diagram_shows_the_passes_and_the_stages() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "diagrams" / "draw.py"))
    assert script["PASSES"] == _CLASS_OF_GROUP
    stages = [detail for name, detail, *_ in script["ENCODER"] if name.startswith("stage")]
    for profile in PROFILES.values():
        assert stages == [f"1/{2 ** (i + 1)}" for i in range(len(profile.analysis_widths))]


def section(number: str) -> str:
    """The text of a section, in one line."""
    found = re.search(rf"^###? {re.escape(number)}\.? .*?\n(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, number
    return " ".join(found[1].split())


def test_the_numbers_of_tables_and_thresholds() -> None:
    text = section("4.5")
    assert f"There are {SCALE_COUNT} tables" in text and len(Rows(*gaussian_rows())) == SCALE_COUNT
    assert f"from {SCALE_MIN:g} to {SCALE_MAX:g}" in text and f"if s < {SKIP_SCALE:g}" in text
    assert f"at least {SCALE_MIN:g} and the result at least 1e-9" in text and LIKELIHOOD_MIN == 1e-9
    assert f"reaches max(4, ceil({TAIL_WIDTH:g} s)) to each side" in text
    assert f"{TAIL_WIDTH:g} is the normal quantile at 1 - 5e-10" in text
    assert NormalDist().inv_cdf(1 - 5e-10) == pytest.approx(TAIL_WIDTH, abs=1e-4)
    assert int(Rows(*gaussian_rows()).highest[0]) == 4
    assert f"multiple of 1/{FINE:g} below a scale of {SWITCH:g} and of 1/{COARSE:g} above it" in text
    step = (math.log(256) - math.log(0.11)) / 63
    scales = np.exp(np.random.default_rng(0).uniform(math.log(0.05), math.log(300), 20_000)).astype(np.float32)
    exact = np.clip(np.floor((np.log(scales) - math.log(0.11)) / step), 0, 63)
    exact[scales < 0.08] = -1
    found = index_table()[cells(scales)]
    moved = np.clip(np.floor((np.log(scales / 1.02) - math.log(0.11)) / step), 0, 63)
    moved[scales / 1.02 < 0.08] = -1
    assert (found <= exact).all() and (found >= moved).all() and (found != exact).any()


def test_the_numbers_of_the_published_files() -> None:
    text = section("8.1")
    counted = {name: len(codec_keys(PROFILES[name])) for name in ("se", "me")}
    assert f"({counted['se']} tensors in `se`, {counted['me']} in `me`)" in text
    trained = trained_unet_keys(PROFILES["se"])
    lora = [name for name in trained if ".lora_" in name]
    assert f"({len(trained)} tensors: {len(lora)} of LoRA" in text
    text = section("8.2")
    alpha = LORA_SCALING * LORA_RANK
    assert f"Rank {LORA_RANK}, alpha {alpha:g}, so the scaling is {LORA_SCALING}" in text
    assert f"on {len(lora) // 2} modules" in text
    text = section("8.5")
    sizes = UNET_TILES
    assert (
        f"{sizes['me'][0]} with an overlap of {sizes['me'][1]} in `me`, {sizes['se'][0]} with {sizes['se'][1]}" in text
    )
    assert f"more than {VAE_TILE + 2 * VAE_MARGIN} samples" in text and f"(side - {2 * VAE_MARGIN})/{VAE_TILE}" in text
    assert f"start at {VAE_MARGIN}" in text


def test_the_numbers_of_tiles() -> None:
    side = math.isqrt(WHOLE_PIXELS)
    assert f"more than {side} x {side} pixels" in section("5.3") and f"at least {OVERLAP} latents" in section("5.3")


def test_the_code_refers_to_sections_that_exist() -> None:
    for document in ("model", "bitstream"):
        text = (ROOT / "docs" / f"{document}.md").read_text()
        headings = {heading.rstrip(".") for heading in re.findall(r"^#+ ([\d.]+) ", text, re.MULTILINE)}
        assert headings, document
        found = 0
        for folder in ("aeic", "aeic_nets", "aeic_train", "aeic_tools", "tests"):
            for path in (ROOT / folder).rglob("*.py"):
                source = re.sub(r"\s+", " ", path.read_text())
                for numbers in re.findall(
                    rf"docs/{document}\.md,? sections? ([\d.]+(?:(?: to | and )[\d.]+)?)", source
                ):
                    found += 1
                    for number in re.findall(r"\d+(?:\.\d+)*", numbers):
                        assert number in headings, f"{path}: docs/{document}.md section {number}"
        assert found
