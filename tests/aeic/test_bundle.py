from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aeic.bundle import Bundle, bundle_folder, default_bundle_path
from aeic.errors import BundleError, RateError
from tests.support.models.tiny_bundle import write_tiny_bundle

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_load(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    assert (bundle.name, bundle.channels, bundle.hyper_channels) == ("tiny", 8, 4)
    assert len(bundle.fingerprint) == 6 and len(bundle.digest) == 32
    assert len(bundle.tables.y) == 64 and len(bundle.tables.z) == 2 and len(bundle.tables.z[0]) == 4
    assert bundle.tables.gains.shape == (2, 8) and bundle.tables.medians.shape == (4,)


def test_rates(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    assert bundle.rate(None).number == 0
    assert bundle.rate("r2").number == bundle.rate(1).number == bundle.rate("1").number == 1
    for unknown in (2, -1, "best"):
        with pytest.raises(RateError, match=r"choose one of 0 \(r1, 0.05 bpp\), 1"):
            bundle.rate(unknown)


def test_sessions_are_kept(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    assert bundle.session("analysis", 1) is bundle.session("analysis.onnx", 1)
    (y,) = bundle.session("analysis", 1).run(None, {"image": np.zeros((2, 3, 64, 128), np.float32)})
    assert y.shape == (2, 8, 2, 4) and y.dtype == np.float32
    with pytest.raises(BundleError, match="has no entropy"):
        bundle.session("entropy")


def test_an_altered_file_is_refused(copy: Path) -> None:
    (copy / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(BundleError, match="was altered"):
        Bundle.load(copy)
    Bundle.load(copy, verify=False)


def test_a_missing_file_is_refused(copy: Path) -> None:
    (copy / "context_2.onnx").unlink()
    with pytest.raises(BundleError, match="context_2"):
        Bundle.load(copy)


def test_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="AEIC_BUNDLE"):
        Bundle.load(tmp_path)
    monkeypatch.setenv("AEIC_BUNDLE", str(tmp_path / "mine"))
    assert default_bundle_path() == tmp_path / "mine"
    monkeypatch.delenv("AEIC_BUNDLE")
    assert default_bundle_path().name == "aeic-se-nano"


def test_a_broken_graph_is_a_bundle_error(copy: Path) -> None:
    (copy / "analysis.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="cannot be loaded"):
        Bundle.load(copy, verify=False).session("analysis")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"npz\0" * 50, b"PK\x03\x04" + bytes(60)])
def test_broken_tables_are_a_bundle_error(copy: Path, content: bytes) -> None:
    (copy / "tables.npz").write_bytes(content)
    with pytest.raises(BundleError, match="tables"):
        Bundle.load(copy, verify=False)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("y_freqs", lambda a: a + 1),
        ("y_lengths", lambda a: a[:-1]),
        ("z_freqs", lambda a: a[:-1]),
        ("z_offsets", lambda a: a[:1]),
        ("z_medians", lambda a: a * np.nan),
        ("gains", lambda a: a * 0),
        ("inverse_gains", lambda a: a[:, :3]),
    ],
)
def test_tables_that_do_not_fit(copy: Path, name: str, change: Any) -> None:
    arrays = dict(np.load(copy / "tables.npz"))
    arrays[name] = change(arrays[name])
    np.savez(copy / "tables.npz", **arrays)
    with pytest.raises(BundleError):
        Bundle.load(copy, verify=False)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"fingerprint": "000000"},
        {"files": {}},
        {"rates": []},
        {"rates": [{"name": "r", "bpp": "much"}]},
        {"default_rate": 2},
        {"latent_channels": 7},
        {"latent_channels": "8"},
        {"latent_channels": 8.0},
        {"default_rate": False},
        {"hyper_channels": 0},
        {"name": None},
        {"defines_bitstream": ["nothing.onnx"]},
    ],
)
def test_manifests_that_do_not_fit(copy: Path, change: dict[str, Any]) -> None:
    manifest = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(manifest | change))
    with pytest.raises(BundleError):
        Bundle.load(copy)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "{", '"x"', "[" * 100_000], ids=lambda text: text[:4])
def test_manifests_that_are_none(copy: Path, text: str) -> None:
    (copy / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        Bundle.load(copy)


@pytest.mark.parametrize("change", [lambda names: names[1:], lambda names: [*names, names[0]], lambda names: []])
def test_a_fingerprint_that_does_not_cover_decoding_is_refused(copy: Path, change: Any) -> None:
    manifest = json.loads((copy / "bundle.json").read_text())
    names = manifest["defines_bitstream"] = change(manifest["defines_bitstream"])
    lines = "".join(f"{name} {manifest['files'][name]}\n" for name in sorted(names))
    manifest["fingerprint"] = hashlib.sha256(lines.encode()).hexdigest()[:6]
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="defines_bitstream"):
        Bundle.load(copy)


def test_a_file_outside_the_folder_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["files"]["../secret"] = "0" * 64
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="folder"):
        Bundle.load(copy)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str]]:
    """What was fetched; the tiny bundle is what comes."""
    calls: list[tuple[str, str]] = []
    made = write_tiny_bundle(tmp_path / "cache")

    def snapshot_download(repository: str, revision: str, allow_patterns: list[str]) -> str:
        calls.append((repository, revision))
        if repository.startswith("nobody"):
            raise OSError("404")
        return str(made)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    return calls


def test_a_pinned_id_is_fetched_and_checked(asked: list[tuple[str, str]]) -> None:
    assert Bundle.load(f"someone/aeic-se@{COMMIT}").name == "tiny"
    assert Bundle.load(Path(f"someone/aeic-se@{COMMIT}")).name == "tiny"  # as the command line gives it
    assert asked == [("someone/aeic-se", COMMIT)] * 2


@pytest.mark.parametrize("name", ["someone/aeic-se@main", "someone/aeic-se@0123abc", f"someone/aeic-se@{COMMIT}0"])
def test_a_name_that_can_move_is_refused(name: str, asked: list[tuple[str, str]]) -> None:
    with pytest.raises(BundleError, match="40 digits"):
        Bundle.load(name)
    assert not asked


def test_folders_stay_folders(asked: list[tuple[str, str]], tmp_path: Path) -> None:
    for name in ("models/aeic-se-nano", str(tmp_path), "../x/y@z", f"a/b/c@{COMMIT}", f"-a/b@{COMMIT}"):
        assert bundle_folder(name) == Path(name)
    assert not asked


def test_what_fails_is_said(asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="could not be fetched"):
        bundle_folder(f"nobody/aeic@{COMMIT}")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BundleError, match=r"\.\[hub\]"):
        bundle_folder(f"someone/aeic@{COMMIT}")
