"""docs/bitstream.md against the program: its decoder, refusals, worked example, CRC and padding are what is written."""

from __future__ import annotations

import json
import math
import re
import zlib
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from aeic.bitstream import HEADER_BYTES, MAX_PAYLOAD_BYTES
from tests.aeic.bitstream import worked_example
from tests.support.models.golden import GOLDEN, LISTING, REFUSED, frame_bytes, refused, streams

TEXT = (GOLDEN.parents[1] / "docs" / "bitstream.md").read_text()


class Refused(Exception):
    pass


def section(number: str) -> str:
    """The text from the heading of section ``number`` to the next heading."""
    found = re.search(rf"^#+ {re.escape(number)}\.? .*?(?=^#+ \d|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, number
    return found[0]


def blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@cache
def written_decoder() -> Any:
    """``decode`` of section 5.1, with the words that the section explains."""

    def require(holds: bool, error: str) -> None:
        if not holds:
            raise Refused(error)

    def little(size: str) -> Any:
        return lambda values: np.asarray(values).astype(f"<{size}").tobytes()

    words: dict[str, Any] = {
        "require": require,
        "u32": lambda data: int.from_bytes(data, "little"),
        "array": lambda values, shape: np.array(values, np.int32).reshape(shape),
        "ceil": math.ceil,
        "crc32": zlib.crc32,
        "float32": np.float32,
        "u8": little("u1"),
        "u16": little("u2"),
        "i16": little("i2"),
        "float32_bytes": little("f4"),
    }
    (code,) = blocks(section("5.1"))
    exec(code, words)
    return words["decode"]


@cache
def bundle(name: str) -> Any:
    folder = GOLDEN / name
    manifest = json.loads((folder / "bundle.json").read_text())
    with np.load(folder / "tables.npz") as arrays:
        a = dict(arrays)
    sessions = {
        graph: onnxruntime.InferenceSession(str(folder / f"{graph}.onnx"))
        for graph in ("hyper_synthesis", *(f"context_{i}" for i in range(4)))
    }

    @cache
    def table(kind: str, row: int) -> Any:
        lengths = a[f"{kind}_lengths"].ravel()
        start = int(lengths[:row].sum())
        f = a[f"{kind}_freqs"][start : start + lengths[row]].tolist()
        c = [0]
        for one in f[:-1]:
            c.append(c[-1] + one)
        return SimpleNamespace(offset=int(a[f"{kind}_offsets"].ravel()[row]), f=f, c=c)

    hyper_channels = manifest["hyper_channels"]
    return SimpleNamespace(
        M=manifest["latent_channels"],
        Cz=hyper_channels,
        R=len(manifest["rates"]),
        fingerprint=bytes.fromhex(manifest["fingerprint"]),
        z_table=lambda rate, c: table("z", rate * hyper_channels + c),
        y_table=lambda index: table("y", int(index)),
        hyper_synthesis=lambda z: sessions["hyper_synthesis"].run(None, {"z_symbols": z[None]})[0][0].copy(),
        context=lambda i, base: [out[0] for out in sessions[f"context_{i}"].run(None, {"base": base[None]})],
    )


@streams
def test_the_written_decoder_decodes(stream: dict[str, Any]) -> None:
    y_hat = written_decoder()((GOLDEN / f"{stream['name']}.aeic").read_bytes(), bundle(stream["bundle"]))
    wanted = np.load(GOLDEN / f"{stream['name']}.npz")["y_hat"]
    assert y_hat.astype("<f4").tobytes() == wanted.astype("<f4").tobytes()


@refused
def test_the_written_decoder_refuses(frame: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=frame["error"]):
        written_decoder()(frame_bytes(frame), bundle(frame["bundle"]))


def test_the_table_of_refusals() -> None:
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", section("5.2"), re.MULTILINE)
    assert [int(step) for step, _ in rows] == list(range(1, 12))
    errors = {int(step): error.strip("`") for step, error in rows}
    shown = {frame["step"]: frame["error"] for frame in REFUSED["frames"]}
    assert shown == {step: error for step, error in errors.items() if step != 5}
    assert f"{MAX_PAYLOAD_BYTES:,} bytes" in section("5.2")


def test_every_golden_frame_is_described() -> None:
    assert {stream["name"] for stream in LISTING["streams"]} <= set(re.findall(r"`([a-z-]+)`", section("9")))


def test_the_worked_example() -> None:
    layout, steps, check = blocks(section("10"))
    lines = [re.match(r"((?:[0-9a-f]{2} )*[0-9a-f]{2})\s", line) for line in layout.splitlines()]
    data = bytes.fromhex("".join(line[1] for line in lines if line))
    assert data == (GOLDEN / "smallest.aeic").read_bytes()
    payload = data[HEADER_BYTES:]
    words = [payload[k : k + 4][::-1].hex().zfill(8) for k in range(0, len(payload), 4)]
    assert re.findall(r"word \d: 0x([0-9a-f]{8})", layout) == words
    assert [line.rstrip() for line in steps.splitlines()] == worked_example.steps()
    assert [line.rstrip() for line in check.splitlines()] == worked_example.check()
    ends = [step.split()[-1][8:] for step in worked_example.steps()[1:]]
    refills = {word: ends.index(word) for word in words if word in ends}
    assert refills == {words[2]: 4, words[1]: 11, words[0]: 24}
    assert "word 2 after symbol 4, word 1 after 11, word 0 after 24" in section("10").replace("\n", " ")


def test_the_crc_is_the_one_that_is_named() -> None:
    assert zlib.crc32(b"123456789") == 0xCBF43926
    assert "0xCBF43926" in section("2")


@pytest.mark.parametrize("n", [2, 3, 16, 17, 33, 63, 64])
def test_reflection(n: int) -> None:
    padded = np.pad(np.arange(n), (0, 4 * n), mode="reflect")
    period = 2 * n - 2
    assert padded.tolist() == [p % period if p % period < n else period - p % period for p in range(5 * n)]
