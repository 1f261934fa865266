"""Picture files of boxes: what is taken, and that no reader of another format sees the rest."""

from __future__ import annotations

from typing import Any

import pytest

from aeic.errors import Unreadable
from cloud_decoder.images import files
from tests.support.pictures import gif, picture


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_file_has_its_media_type_and_size(form: str) -> None:
    assert files.describe(picture(96, 64, form=form), max_pixels=96 * 64) == (f"image/{form.lower()}", 96, 64)


@pytest.mark.parametrize("start", [b"\0\0\0\x1cftypavif", b"\0\0\0\x1cftypheic", b"RIFF\0\0\0\0AVI ", b"", gif()])
def test_what_is_not_taken_is_given_to_no_reader(monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    """A box is hostile: the parsers of AVIF and HEIF must not see its bytes."""

    def reads(*_: Any, **__: Any) -> None:
        raise AssertionError("a reader was given the file")

    monkeypatch.setattr(files, "picture_size", reads)
    with pytest.raises(Unreadable, match="not a JPEG, PNG or WebP"):
        files.describe(start + bytes(100), max_pixels=1 << 20)
