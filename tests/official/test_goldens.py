"""`aeic bench goldens`: the codec part on a reduced set of vectors; at full size with AEIC_GOLDENS=DIR."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from aeic.errors import InputError
from aeic_nets.official import goldens_check
from tests.official import second_network

FOLDER = Path(__file__).parent / "goldens"


def test_symbols_and_streams_of_the_published_codec(capsys: pytest.CaptureFixture[str]) -> None:
    assert goldens_check.main([str(FOLDER), "--profile", "se", "--parts", "codec", "--paths", "torch"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["ok"]
    required = {"A_y_sym", "C_y_sym", "C_bitstream", "C_y_hat", "z_cdf_flat_SE", "bpp estimate, total"}
    assert all(summary["arrays"][name]["ok"] and summary["arrays"][name]["required"] for name in required)


def test_one_wrong_symbol_or_an_unknown_array_fails() -> None:
    wanted = {"C_y_sym": np.zeros((1, 4, 2, 2), np.int8)}
    assert goldens_check.compare(wanted, dict(wanted), {}, 4).ok
    other = wanted["C_y_sym"].copy()
    other[0, 1, 1, 1] = 1
    assert not goldens_check.compare(wanted, {"C_y_sym": other}, {}, 4).ok
    assert not goldens_check.compare({"C_new": other}, {"C_y_sym": other}, {}, 4).ok


def test_a_folder_without_vectors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"golden_ME\.npz"):
        goldens_check.main([str(tmp_path), "--profile", "me"])
    shutil.copy(FOLDER / "golden_SE.npz", tmp_path)
    with pytest.raises(InputError, match=r"golden_meta\.json"):
        goldens_check.main([str(tmp_path), "--profile", "se"])


@pytest.mark.slow
@pytest.mark.skipif("AEIC_GOLDENS" not in os.environ, reason="set AEIC_GOLDENS to the folder of all golden vectors")
def test_everything_at_full_size() -> None:
    assert goldens_check.main([os.environ["AEIC_GOLDENS"], "--profile", "se"]) == 0


PHASES = {"me": (128, 192, 17.15), "se": (192, 128, 4.55)}
"""Height, width and phase of pictures whose latents lie far enough from every boundary; h_a needs y padded."""


def second_vectors(profile: str, folder: Path) -> list[str]:
    """Vectors in the published form by the second writing-out, and the arguments to compare with them."""
    height, width, phase = PHASES[profile]
    stored, meta = second_network.make(profile, height, width, 1, [phase])
    nearest = min(value for each in meta["margins"].values() for value in each.values())
    assert nearest >= goldens_check.SAFE_MARGIN  # so that every array is required
    np.savez(folder / f"golden_{profile.upper()}.npz", **stored)
    (folder / "golden_meta.json").write_text(json.dumps({profile.upper(): meta}))
    return [str(folder), "--profile", profile, "--parts", "codec"]


@pytest.mark.parametrize("profile", ["me", "se"])
def test_a_second_writing_out_of_the_codec_agrees(profile: str, tmp_path: Path) -> None:
    """Other sizes and the other profile, for which no published vectors are here; in the published form."""
    assert goldens_check.main([*second_vectors(profile, tmp_path), "--paths", "torch"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["se", "me"])
def test_the_codec_by_onnx_runtime(profile: str, tmp_path: Path) -> None:
    assert goldens_check.main(second_vectors(profile, tmp_path)) == 0
