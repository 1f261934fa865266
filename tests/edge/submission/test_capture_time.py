"""When a picture was taken: what its sender says, its EXIF, the time of its file, the clock at arrival."""

from __future__ import annotations

import datetime
import io
import time
import uuid
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from edge_encoder.spool.record import CapturedFrom
from edge_encoder.submission.capture_time import captured, exif_time_ms, parse_time
from tests.support.edge.fakes import FakeCloud, serving
from tests.support.edge.in_process import edge
from tests.support.pictures import picture

_NOON_MS = 1_764_072_000_000  # 2025-11-25T12:00:00Z


def with_exif(*, form: str = "JPEG", **tags: str) -> bytes:
    """A picture whose EXIF has these tags."""
    exif = Image.Exif()
    block = exif.get_ifd(ExifTags.IFD.Exif)
    for name, value in tags.items():
        block[ExifTags.Base[name].value] = value
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, form, exif=exif.tobytes())
    return out.getvalue()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2025-11-25T12:00:00Z", _NOON_MS),
        ("2025-11-25T13:00:00.250+01:00", _NOON_MS + 250),
        ("2025-11-25T12:00:00", _NOON_MS),
        ("1764072000", _NOON_MS),
        ("1764072000.125", _NOON_MS + 125),
        ("1764072000000", _NOON_MS),
        ("1764072000000.9", _NOON_MS),
        ("99999999999", 99_999_999_999_000),
        ("100000000000", 100_000_000_000),
        ("0", 0),
    ],
)
def test_seconds_milliseconds_and_rfc_3339_are_told_apart(text: str, value: int) -> None:
    assert parse_time(text) == value


@pytest.mark.parametrize("text", ["", "noon", "-5", "1764072000000000", "1e9", "0x10", "99999-01-01", "1_0", "٣"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_names_the_time_with_its_zone_and_fraction(form: str) -> None:
    tags = {"DateTimeOriginal": "2025:11:25 13:00:00", "OffsetTimeOriginal": "+01:00", "SubsecTimeOriginal": "25"}
    assert exif_time_ms(with_exif(form=form, **tags)) == _NOON_MS + 250


def test_exif_without_a_zone_is_the_time_of_this_machine() -> None:
    local = datetime.datetime(2025, 11, 25, 13, 0, 0).timestamp()
    assert exif_time_ms(with_exif(DateTimeOriginal="2025:11:25 13:00:00")) == int(local) * 1000


@pytest.mark.parametrize("text", ["0000:00:00 00:00:00", "2025-11-25", "\x00\x00", "x" * 4000, "1850:01:01 00:00:00"])
def test_a_malformed_exif_time_is_none(text: str) -> None:
    assert exif_time_ms(with_exif(DateTimeOriginal=text)) == 0
    assert exif_time_ms(b"no picture") == exif_time_ms(picture()) == 0


def test_the_best_source_is_taken_and_named() -> None:
    taken = with_exif(DateTimeOriginal="2025:11:25 13:00:00", OffsetTimeOriginal="+01:00")
    now, unset = _NOON_MS + 86_400_000, 1_000_000
    assert captured(taken, 5, CapturedFrom.SENDER, now) == (5, CapturedFrom.SENDER)
    assert captured(taken, 0, CapturedFrom.SENDER, now) == (_NOON_MS, CapturedFrom.EXIF)
    assert captured(taken, 7, CapturedFrom.FILE, now) == (_NOON_MS, CapturedFrom.EXIF)
    assert captured(picture(), 7, CapturedFrom.FILE, now) == (7, CapturedFrom.FILE)
    assert captured(picture(), 0, CapturedFrom.SENDER, now) == (now, CapturedFrom.CLOCK)
    # A box whose clock is not set yet does not know the time.
    assert captured(picture(), 0, CapturedFrom.SENDER, unset) == (0, CapturedFrom.UNKNOWN)


@pytest.mark.parametrize("wait", ["delivered", "received"])
async def test_the_cloud_learns_the_time_its_source_and_the_original_size(
    tmp_path: Path, tiny_bundle: Path, wait: str
) -> None:
    cloud = FakeCloud()
    taken = with_exif(DateTimeOriginal="2025:11:25 13:00:00", OffsetTimeOriginal="+01:00")
    async with serving(cloud) as address, edge(tmp_path, tiny_bundle, cloud_address=address) as (client, service):
        begin = int(time.time() * 1000)
        for content, headers in (
            (picture(400, 300), {}),
            (taken, {}),
            (taken, {"X-Captured-At": "1764072001"}),
        ):
            params = {"wait": wait, "max_side": "128"}
            answer = await client.post("/v1/frames", params=params, headers=headers, content=content)
            assert answer.status_code == 202, answer.text
            await service.waiting.settled(uuid.UUID(answer.json()["id"]), 10)
        clock, exif, sender = (cloud.messages[ident] for ident in cloud.order)
        assert (clock.captured_from, exif.captured_from, sender.captured_from) == (4, 2, 1)
        assert begin <= clock.captured_unix_ms <= int(time.time() * 1000)
        assert (exif.captured_unix_ms, sender.captured_unix_ms) == (_NOON_MS, _NOON_MS + 1000)
        assert (clock.original_width, clock.original_height) == (400, 300)
        assert (exif.original_width, exif.original_height) == (64, 64)
        shown = (await client.get(f"/v1/frames/{cloud.order[0]}")).json()
        assert (shown["width"], shown["height"]) == (128, 96)
        assert (shown["original_width"], shown["original_height"]) == (400, 300)
