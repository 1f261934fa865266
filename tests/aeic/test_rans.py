from __future__ import annotations

import contextlib
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aeic import rans
from aeic.errors import BitstreamError, Damaged, Truncated
from aeic.tables import TOTAL, Rows, gaussian_rows, rows_from_pmf

needs_constriction = pytest.mark.skipif(not rans.AVAILABLE, reason="constriction has no wheel here")
both = pytest.mark.parametrize("accelerate", [False, pytest.param(True, marks=needs_constriction)])


@cache
def gaussians() -> Rows:
    return Rows(*gaussian_rows())


@cache
def odd_rows() -> Rows:
    """A certain symbol, an even choice, a nearly certain one, and a long row."""
    pmfs: list[Any] = [[1.0], [1.0, 1.0], [1.0, 1e-12, 1e-12], np.linspace(1, 2, 999)]
    return Rows(*rows_from_pmf(pmfs, [5, 0, -1, -400]))


def draw_values(rng: np.random.Generator, ids: np.ndarray, rows: Rows) -> np.ndarray:
    """Values as likely as their tables say."""
    values = np.empty(len(ids), np.int32)
    for index in np.unique(ids):
        here = np.flatnonzero(ids == index)
        pmf = rows.freqs[rows.row(index)] / TOTAL
        values[here] = rng.choice(len(pmf), len(here), p=pmf) + rows.offsets[index]
    return values


def draw_runs(seed: int, sizes: list[int]) -> list[rans.Run]:
    rng = np.random.default_rng(seed)
    runs: list[rans.Run] = []
    for number, size in enumerate(sizes):
        rows = odd_rows() if number % 2 else gaussians()
        ids = rng.integers(0, len(rows), size).astype(np.int8)
        runs.append((draw_values(rng, ids, rows), ids, rows))
    return runs


def read_all(payload: bytes, runs: list[rans.Run], accelerate: bool) -> int:
    decoder = rans.Decoder(payload, accelerate)
    for values, ids, rows in runs:
        assert (decoder.read(ids, rows) == values).all()
    return decoder.finish()


@both
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 300), max_size=6), st.integers(1, 0xFFFFFF))
def test_round_trip(accelerate: bool, seed: int, sizes: list[int], check: int) -> None:
    runs = draw_runs(seed, sizes)
    payload = rans.encode(runs, check, accelerate)
    assert payload[-1] != 0
    assert read_all(payload, runs, accelerate) == check


@needs_constriction
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 300), max_size=6), st.integers(1, 0xFFFFFF))
def test_accelerator_gives_the_same_bytes(seed: int, sizes: list[int], check: int) -> None:
    runs = draw_runs(seed, sizes)
    payload = rans.encode(runs, check, accelerate=False)
    assert payload == rans.encode(runs, check, accelerate=True)


@needs_constriction
@settings(deadline=None, max_examples=100)
@given(st.binary(min_size=1, max_size=120).filter(lambda data: data[-1] != 0), st.integers(0, 1 << 32))
def test_accelerator_reads_the_same_from_noise(payload: bytes, seed: int) -> None:
    runs = draw_runs(seed, [50, 30, 50])
    plain, fast = rans.Decoder(payload, False), rans.Decoder(payload, True)
    for _, ids, rows in runs:
        assert (plain.read(ids, rows) == fast.read(ids, rows)).all()
    ends: list[int | None] = []
    for decoder in (plain, fast):
        try:
            ends.append(decoder.finish())
        except Damaged:
            ends.append(None)
    assert ends[0] == ends[1]


@needs_constriction
def test_every_row_is_the_same_in_constriction() -> None:
    """Every symbol of every table, once: a frequency that differs anywhere would show."""
    for rows in (gaussians(), odd_rows()):
        ids = np.repeat(np.arange(len(rows)), rows.lengths)
        values = np.concatenate([np.arange(n) + o for n, o in zip(rows.lengths, rows.offsets, strict=True)])
        runs = [(values, ids, rows)]
        assert rans.encode(runs, 99, False) == rans.encode(runs, 99, True)


def test_golden_bytes() -> None:
    """These bytes are the format: if this fails, the change breaks every frame ever made."""
    rows = Rows(*rows_from_pmf([[1, 2, 1], [1, 6, 1]]))
    values, ids = np.array([0, 1, -1, 0, 0, 1, -1, 0, -1, 1] * 4), np.array([1, 0] * 20)
    assert rans.encode([(values, ids, rows)], 0x123456, accelerate=False).hex() == "7205d4dbd554d5f6f6d63d"


def test_order_is_a_stable_sort_by_table() -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 64, 500)
    values = draw_values(rng, ids, gaussians())
    order = np.argsort(ids, kind="stable")
    direct = rans.encode([(values, ids, gaussians())], 7, False)
    assert direct == rans.encode([(values[order], ids[order], gaussians())], 7, False)


def test_no_symbols_still_carry_the_check() -> None:
    payload = rans.encode([], 0x0000AB, False)
    assert payload == b"\xab" and rans.Decoder(payload, False).finish() == 0xAB


@both
def test_overhead_is_at_most_four_bytes(accelerate: bool) -> None:
    over = []
    for seed in range(150):
        runs = draw_runs(seed, [400, 0, 400])
        ideal = sum(rows.bits(values, ids) for values, ids, rows in runs) / 8
        over.append(len(rans.encode(runs, 0xFFFFFF - seed, accelerate)) - ideal)
    assert np.mean(over) < 3.6 and max(over) <= 4.05, (np.mean(over), max(over))


@both
def test_values_outside_a_table_are_refused(accelerate: bool) -> None:
    for value in (5, -5, 1000):
        with pytest.raises(ValueError, match="clip"):
            rans.encode([(np.array([0, value]), np.array([0, 0]), gaussians())], 1, accelerate)


def test_check_must_fit() -> None:
    for check in (0, 1 << 24, -1):
        with pytest.raises(ValueError, match="check value"):
            rans.encode([], check)


@both
def test_damage_is_seen(accelerate: bool) -> None:
    runs = draw_runs(3, [200])
    payload = rans.encode(runs, 0xABCDEF, accelerate)
    with pytest.raises(Truncated):
        rans.Decoder(b"", accelerate)
    with pytest.raises(Damaged, match="zero byte"):
        rans.Decoder(payload + b"\0", accelerate)
    for bad in (payload + b"\x01", payload[:-1] + b"\x01", payload[:40], payload * 2):
        with contextlib.suppress(BitstreamError):
            decoder = rans.Decoder(bad, accelerate)
            decoder.read(runs[0][1], runs[0][2])
            assert decoder.finish() != 0xABCDEF
