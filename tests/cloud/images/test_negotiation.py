"""Which format a client gets that names none: what its Accept header prefers."""

from __future__ import annotations

import pytest

from cloud_decoder.errors import NotAcceptable
from cloud_decoder.images.negotiation import acceptable_format

CHROME = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "format"),
    [
        ("", "png"),
        ("*/*", "png"),
        ("image/*", "png"),
        ("image/webp", "webp"),
        ("IMAGE/AVIF", "avif"),
        (CHROME, "webp"),
        ("image/png, image/webp", "png"),
        ("image/png;q=0.5, image/webp", "webp"),
        ("image/jpeg;q=0.9, image/*;q=0.2", "jpeg"),
        ("image/png;q=0, */*", "webp"),
        ("image/*;q=0.1, image/png;q=0", "webp"),
        ("text/html, application/json;q=0.9, */*;q=0.1", "png"),
        ("image/webp; q=0.7; level=1, image/jpeg ; q=0.8", "jpeg"),
        ("nonsense, image/webp;q=2, image/avif", "avif"),
        ("nonsense", "png"),
        ("image/webp;q=0.000, image/jpeg;q=0.001", "jpeg"),
        (",".join(["text/x"] * 5000 + ["image/webp"]), None),
    ],
)
def test_the_header_decides(accept: str, format: str | None) -> None:
    if format is None:
        with pytest.raises(NotAcceptable):
            acceptable_format(accept)
    else:
        assert acceptable_format(accept) == format


@pytest.mark.parametrize("accept", ["text/html", "image/heic", "image/*;q=0", "*/*;q=0", "audio/*"])
def test_nothing_that_fits_is_an_error(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="image/png, image/webp, image/jpeg, image/avif"):
        acceptable_format(accept)
