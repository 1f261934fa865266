"""Bundles by Hugging Face id: only pinned, only through the library, checked like any other."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from aeic import hub
from aeic.bundle import Bundle
from aeic.errors import BundleError
from tests.support.models.tiny_bundle import write_tiny_bundle

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
        assert hub.folder(name) == Path(name)
    assert not asked


def test_what_fails_is_said(asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="could not be fetched"):
        hub.folder(f"nobody/aeic@{COMMIT}")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BundleError, match=r"\.\[hub\]"):
        hub.folder(f"someone/aeic@{COMMIT}")
