"""The golden streams: a changed byte means that frames already sent can no longer be read."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import numpy as np
import pytest

from aeic import errors, latent_codec, rans
from aeic.bitstream import STATISTICS_VERSION, VERSION, Frame
from aeic.bundle import Bundle
from aeic.colour_statistics import ColourStatistics
from aeic.latent_codec import LatentCodec
from tests.aeic.bitstream import second_decoder
from tests.aeic.bitstream.make_golden import LISTING_VERSION, STREAMS
from tests.support.models.golden import GOLDEN, LISTING, REFUSED, frame_bytes, refused, streams

FIRST_SEVEN = "34413b2ed21de21ca701a8efe9f7738f00e70857f6af612a6c0cc29f5da1f2b5"
VERSION_1 = "53f9079bde583ebdd29ad3e775a7c7cb73215fbe4b40b9e3799b2872973cab91"
coders = pytest.mark.parametrize("accelerated", [rans.AVAILABLE, False], ids=["preferred", "plain"])


@cache
def codec(name: str) -> LatentCodec:
    return LatentCodec(Bundle.load(GOLDEN / name), threads=1)


def test_version() -> None:
    assert LISTING["version"] == REFUSED["version"] == LISTING_VERSION
    versions = {stream["version"] for stream in LISTING["streams"]}
    assert versions == {VERSION, STATISTICS_VERSION}, "a new version needs new streams"


def test_the_first_frames_never_change() -> None:
    """The frames of the first release, by the digest of all their digests: golden.json cannot be changed with them."""
    digests = "".join(stream["sha256"] for stream in LISTING["streams"][:7])
    assert hashlib.sha256(digests.encode()).hexdigest() == FIRST_SEVEN


def test_version_2_has_changed_no_frame_of_version_1() -> None:
    digests = "".join(stream["sha256"] for stream in LISTING["streams"][:13])
    assert hashlib.sha256(digests.encode()).hexdigest() == VERSION_1
    for stream in LISTING["streams"]:
        data = (GOLDEN / f"{stream['name']}.aeic").read_bytes()
        assert (data[1] >> 5, "statistics" in stream) == (stream["version"], stream["version"] == 2)


def test_every_file_is_listed() -> None:
    listed = {f"{stream['name']}.aeic" for stream in LISTING["streams"]}
    assert listed == {path.name for path in GOLDEN.glob("*.aeic")} == {f"{stream.name}.aeic" for stream in STREAMS}
    listed = {f"{frame['name']}.aeic" for frame in REFUSED["frames"]}
    assert listed == {path.name for path in (GOLDEN / "refused").glob("*.aeic")}


@coders
@streams
def test_decodes_to_the_same_latents(
    stream: dict[str, Any], accelerated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rans, "ACCELERATED", accelerated)
    data = (GOLDEN / f"{stream['name']}.aeic").read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (stream["bytes"], stream["sha256"])
    wanted = np.load(GOLDEN / f"{stream['name']}.npz")
    decoded, latents = codec(stream["bundle"]).decode_symbols(data), codec(stream["bundle"]).decode(data)
    assert decoded.digest == latents.digest == stream["latents"]
    assert (decoded.symbols == wanted["symbols"]).all() and (decoded.y_hat == wanted["y_hat"]).all()
    inverse = codec(stream["bundle"]).bundle.tables.inverse_gains[stream["rate"]][:, None, None]
    assert (latents.y_hat == decoded.y_hat * inverse).all() and (latents.symbols == decoded.symbols).all()


@coders
@streams
def test_encodes_to_the_same_bytes(stream: dict[str, Any], accelerated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rans, "ACCELERATED", accelerated)
    given = np.load(GOLDEN / f"{stream['name']}.npz")
    colour = ColourStatistics.of(given["picture"]) if stream["version"] == STATISTICS_VERSION else None
    data = codec(stream["bundle"]).encode(given["y"], stream["rate"], stream["width"], stream["height"], colour)
    assert data == (GOLDEN / f"{stream['name']}.aeic").read_bytes()


@streams
def test_the_document_is_enough(stream: dict[str, Any]) -> None:
    y_hat = second_decoder.decode(GOLDEN / stream["bundle"], (GOLDEN / f"{stream['name']}.aeic").read_bytes())
    assert hashlib.sha256(y_hat.astype("<f4").tobytes()).hexdigest() == stream["latents"]


def test_both_decoders_read_and_apply_the_same_statistics() -> None:
    (stream,) = (stream for stream in LISTING["streams"] if stream["version"] == STATISTICS_VERSION)
    data = (GOLDEN / f"{stream['name']}.aeic").read_bytes()
    colour = Frame.parse(data).colour
    assert colour is not None
    assert [*colour.means, *colour.stds] == second_decoder.statistics(data) == stream["statistics"]
    arrays = np.load(GOLDEN / f"{stream['name']}.npz")
    pairs = [second_decoder.measured(arrays["picture"][:, :, c]) for c in range(3)]
    assert [pair[0] for pair in pairs] + [pair[1] for pair in pairs] == stream["statistics"]
    corrected = arrays["decoded"].copy()
    colour.correct(corrected)
    assert (corrected == arrays["corrected"]).all() and (corrected != arrays["decoded"]).any()
    assert (second_decoder.corrected(arrays["decoded"], stream["statistics"]) == arrays["corrected"]).all()


@coders
@refused
def test_refuses_by_the_right_name(frame: dict[str, Any], accelerated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rans, "ACCELERATED", accelerated)
    with pytest.raises(errors.BitstreamError) as caught:
        codec(frame["bundle"]).decode(frame_bytes(frame))
    assert type(caught.value) is getattr(errors, frame["error"])


@refused
def test_the_document_refuses_at_the_same_step(frame: dict[str, Any]) -> None:
    with pytest.raises(second_decoder.Refused) as caught:
        second_decoder.decode(GOLDEN / frame["bundle"], frame_bytes(frame))
    assert (caught.value.step, caught.value.error) == (frame["step"], frame["error"])


def test_check_zero_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CRC of this frame really ends in 24 zero bits: without the rule, its check value would be 0."""
    found = []
    check_value: Any = vars(latent_codec)["check_value"]
    crc32 = check_value.__globals__["zlib"].crc32

    class Spy:
        @staticmethod
        def crc32(data: bytes, crc: int = 0) -> int:
            found.append(crc32(data, crc))
            return int(found[-1])

    monkeypatch.setitem(check_value.__globals__, "zlib", Spy)
    codec("bundle").decode((GOLDEN / "check-zero.aeic").read_bytes())
    assert found[-1] & 0xFFFFFF == 0 and found[-1] != 0


def test_payload_sizes() -> None:
    sizes = {stream["name"]: stream["bytes"] - (21 if "statistics" in stream else 9) for stream in LISTING["streams"]}
    assert sizes["one-byte"] == 1 and sizes["one-word"] == 4 and 4 < sizes["two-words"] <= 8


@pytest.mark.parametrize("name", ["bundle", "bundle-extreme"])
def test_tables_hold_what_is_specified(name: str) -> None:
    ints = [f"{kind}_{part}" for kind in "yz" for part in ("lengths", "offsets", "freqs")]
    with np.load(GOLDEN / name / "tables.npz") as arrays:
        assert set(arrays.files) == {*ints, "z_medians", "gains", "inverse_gains"}
        assert all(arrays[array].dtype == np.int32 for array in ints)
