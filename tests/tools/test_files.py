"""Jobs, pipes, overwriting."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from aeic.errors import InputError
from aeic_tools import files
from aeic_tools.files import Job, UsageError

SUFFIXES = (".jpg", ".png")


def test_one_file_is_one_job() -> None:
    assert files.plan("a.jpg", "b.aeic", SUFFIXES, ".aeic") == [Job("a.jpg", "b.aeic")]
    assert files.plan("-", "-", SUFFIXES, ".aeic") == [Job("-", "-")]


def test_a_file_into_a_folder_keeps_its_name(tmp_path: Path) -> None:
    assert files.plan("x/a.jpg", str(tmp_path), SUFFIXES, ".aeic") == [Job("x/a.jpg", str(tmp_path / "a.aeic"))]


def test_a_folder_is_a_job_for_each_picture_by_name(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    jobs = files.plan(str(tmp_path), "out", SUFFIXES, ".aeic")
    assert [Path(job.target).name for job in jobs] == ["a.aeic", "b.JPG.aeic", "b.png.aeic"]


def test_a_folder_cannot_go_into_a_file_or_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in ("-", str(tmp_path / "file")):
        with pytest.raises(UsageError, match="folder"):
            files.plan(str(tmp_path), target, SUFFIXES, ".aeic")
    with pytest.raises(InputError, match="ends in"):
        files.plan(str(tmp_path), "out", SUFFIXES, ".aeic")


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.aeic"
    files.write(str(target), b"one", force=False)
    with pytest.raises(UsageError, match="-f"):
        files.write(str(target), b"two", force=False)
    assert target.read_bytes() == b"one"
    files.write(str(target), b"two", force=True)
    assert target.read_bytes() == b"two"
    assert [path.name for path in target.parent.iterdir()] == ["b.aeic"]
    assert stat.S_IMODE(target.stat().st_mode) & 0o400


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        files.read(str(tmp_path / "nothing"))


def test_a_device_is_written_to_and_stays() -> None:
    files.write("/dev/null", b"x", force=True)
    assert not Path("/dev/null").is_file()


def test_a_photograph_is_never_replaced_by_what_is_made_of_it(tmp_path: Path) -> None:
    photo, link = tmp_path / "a.jpg", tmp_path / "link.jpg"
    photo.touch()
    link.symlink_to(photo)
    for target in (photo, link, tmp_path / "." / "a.jpg"):
        with pytest.raises(UsageError, match="input itself"):
            files.plan(str(photo), str(target), SUFFIXES, ".aeic")


def test_an_empty_name_is_not_the_folder_one_stands_in(tmp_path: Path) -> None:
    for source, target in (("", "out"), ("a.jpg", ""), (str(tmp_path), "")):
        with pytest.raises(UsageError):
            files.plan(source, target, SUFFIXES, ".aeic")


def test_what_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (str(tmp_path / "file" / "a.aeic"), "/dev/full"):
        with pytest.raises(files.Unwritable, match=r"cannot write .*check the folder"):
            files.write(target, b"x", force=True)
