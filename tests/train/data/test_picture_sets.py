"""A folder is compared with the manifest of a public set: what is wrong is named, and the digests are recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from aeic.errors import InputError
from aeic_train.data import picture_sets
from aeic_train.data.picture_sets import Archive


@pytest.fixture(scope="module")
def kodak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with the names and sizes of Kodak's, of one colour."""
    folder = tmp_path_factory.mktemp("kodak")
    for name, size in picture_sets.manifest("kodak").sizes.items():
        assert size is not None
        Image.new("RGB", size).save(folder / name)
    return folder


def test_the_manifests_say_what_is_published() -> None:
    assert picture_sets.NAMES == ("clic", "div2k", "kodak")
    sets = {name: picture_sets.manifest(name) for name in picture_sets.NAMES}
    assert {name: found.pictures for name, found in sets.items()} == {"clic": 428, "div2k": 100, "kodak": 24}
    kodak, div2k = sets["kodak"], sets["div2k"]
    upright = [name for name, size in kodak.sizes.items() if size == (512, 768)]
    assert [name[5:7] for name in upright] == ["04", "09", "10", "17", "18", "19"]
    assert set(kodak.sizes.values()) == {(512, 768), (768, 512)}
    assert [*div2k.sizes][::99] == ["0801.png", "0900.png"] and div2k.longest_side == 2040
    for found in sets.values():
        assert found.source.startswith("https://") and len(found.sizes) in (0, found.pictures)
        for archive in found.archives:
            assert archive.name in found.place and len(bytes.fromhex(archive.sha256)) == 32


def test_a_whole_set_is_taken_and_its_digests_are_those_of_sha256sum(kodak: Path) -> None:
    seen = picture_sets.check("kodak", kodak)
    assert [picture.path.name for picture in seen] == [f"kodim{n:02d}.png" for n in range(1, 25)]
    found = picture_sets.document("kodak", seen)
    first = hashlib.sha256((kodak / "kodim01.png").read_bytes()).hexdigest()
    assert found["pictures"][0] == {"name": "kodim01.png", "width": 768, "height": 512, "sha256": first}
    lines = "".join(f"{row['sha256']}  {row['name']}\n" for row in found["pictures"])
    assert found["sha256"] == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "kodim07.png").unlink(),
            r"lacks kodim07.png\. Get the 24 pictures of Kodak",
        ),
        (lambda folder: Image.new("RGB", (8, 8)).save(folder / "more.png"), "not in the set: more.png"),
        (lambda folder: Image.new("RGB", (512, 768)).save(folder / "kodim01.png"), "512x768 pixels instead of 768x512"),
        (lambda folder: (folder / "kodim02.png").write_bytes(b"no picture"), "kodim02.png cannot be read"),
        (lambda folder: _again(folder, "kodim03.png"), "more than one picture of the name kodim03.png"),
    ],
)
def test_another_folder_is_refused(kodak: Path, tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    for path in kodak.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(tmp_path)
    with pytest.raises(InputError, match=message):
        picture_sets.check("kodak", tmp_path)


def _again(folder: Path, name: str) -> None:
    (folder / "again").mkdir()
    (folder / "again" / name).write_bytes((folder / name).read_bytes())


def test_sets_without_sizes_are_checked_by_number_and_side(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        picture_sets.check("clic", tmp_path / "missing")
    Image.new("RGB", (9, 9)).save(tmp_path / "any.png")
    with pytest.raises(InputError, match="holds 1 pictures, and the set has 428"):
        picture_sets.check("clic", tmp_path)
    with pytest.raises(InputError, match="choose one of clic, div2k, kodak"):
        picture_sets.check("imagenet", tmp_path)
    other = tmp_path / "div2k"
    other.mkdir()
    for number in range(801, 901):
        Image.new("L", (2040, 8) if number != 850 else (2030, 8)).save(other / f"{number:04d}.png")
    with pytest.raises(InputError, match=r"0850\.png has 2030x8 pixels, and its longer side should have 2040"):
        picture_sets.check("div2k", other)


def test_an_archive_beside_the_pictures_is_compared(
    kodak: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive("set.zip", 3, hashlib.sha256(b"zip").hexdigest())
    wanted = replace(picture_sets.manifest("kodak"), archives=(archive,))
    monkeypatch.setattr(picture_sets, "manifest", lambda name: wanted)
    for path in kodak.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "set.zip").write_bytes(b"zip")
    picture_sets.check("kodak", tmp_path)
    (tmp_path / "set.zip").write_bytes(b"zap")
    with pytest.raises(InputError, match="is not the published archive"):
        picture_sets.check("kodak", tmp_path)
