"""The entropy coder: symbols and frequency tables to bytes, and back. Independent of pictures and latents.

rANS with a 64-bit state, 32-bit words and 24-bit frequencies: the arithmetic of constriction's ``AnsCoder``. This
module defines the format. If constriction can be imported, it does the same work about twenty times as fast, byte for
byte.

A *run* is ``(values, ids, rows)``: one-dimensional integers, the table of each, and the tables. Within a run symbols
are coded in the order of a stable sort by table id. Both sides know the ids beforehand, so the order costs nothing, and
it lets a whole stretch be coded with one table.

The coder is a stack. The encoder pushes the last symbol first, so that the decoder reads them in order. The encoder's
initial state is ``check``, 24 bits that the decoder must find again at the end. An empty initial state would waste
those bits, so the check value costs nothing.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeic.errors import Damaged, Truncated
from aeic.tables import PRECISION, TOTAL, Rows

try:
    import constriction
except ImportError:  # there is no wheel for ARM Linux, and none is needed
    constriction = None

AVAILABLE: bool = constriction is not None
"""Whether constriction can be imported here."""
ACCELERATED: bool = AVAILABLE and os.environ.get("AEIC_RANS") != "python"
"""Whether constriction is used by default; ``AEIC_RANS=python`` in the environment says no."""
CHECK_BITS = 24
Ints = NDArray[np.integer[Any]]
Run = tuple[Ints, Ints, Rows]

_WORD_MASK = 0xFFFFFFFF
_LOW = 1 << 32  # with words left, the state stays in [2**32, 2**64)
_MASK = TOTAL - 1
_FLUSH = 64 - PRECISION


def encode(runs: Sequence[Run], check: int, accelerate: bool | None = None) -> bytes:
    """Code ``runs`` in order; ``check`` is in 1..2**24-1. Returns little-endian words without trailing zero bytes.

    ``ValueError`` if a value lies outside its table.
    """
    if not 0 < check < 1 << CHECK_BITS:
        raise ValueError(f"the check value must be in 1..{(1 << CHECK_BITS) - 1}, not {check}")
    fast = ACCELERATED if accelerate is None else accelerate
    words = _encode_fast(runs, check) if fast else _encode_plain(runs, check)
    return words.astype("<u4").tobytes().rstrip(b"\0")


class Decoder:
    """Reads the runs of one payload in order: one :meth:`read` each, then :meth:`finish`.

    Any bytes may be given: what is not a payload decodes to arbitrary symbols of the tables, never more than asked for,
    and does not pass the caller's comparison of :meth:`finish` with the check value.
    """

    def __init__(self, payload: bytes, accelerate: bool | None = None) -> None:
        """``Truncated`` if there are no bytes, ``Damaged`` if the last one is zero (an encoder strips those)."""
        if not payload:
            raise Truncated("the frame ends after its header: fetch it again in full")
        if payload[-1] == 0:
            raise Damaged("the frame ends in a zero byte, which no encoder writes: fetch it again")
        words = np.frombuffer(payload + bytes(-len(payload) % 4), "<u4").astype(np.uint32)
        self._coder: Any = None
        if ACCELERATED if accelerate is None else accelerate:
            self._coder = constriction.stream.stack.AnsCoder(words)
            return
        self._words: list[int] = words.tolist()
        self._state = self._words.pop()
        if self._words:
            self._state = self._state << 32 | self._words.pop()

    def read(self, ids: Ints, rows: Rows) -> NDArray[np.int32]:
        """The values of the run with tables ``ids`` (n,). Returns (n,) int32, in the order of ``ids``."""
        order = np.argsort(ids, kind="stable")
        values = np.empty(len(ids), np.int32)
        done = 0
        for index, count in _stretches(ids[order]):
            values[order[done : done + count]] = self._symbols(rows, index, count) + int(rows.offsets[index])
            done += count
        return values

    def finish(self) -> int:
        """The check value that the stream holds. ``Damaged`` if words are left, or it is no check value."""
        if self._coder is not None:
            words = self._coder.get_compressed().tolist()
            left, state = len(words) > 1, words[0] if words else 0
        else:
            left, state = bool(self._words), self._state
        if left or not 0 < state < 1 << CHECK_BITS:
            raise Damaged("the frame does not end where its symbols do: it was changed on the way, fetch it again")
        return int(state)

    def _symbols(self, rows: Rows, index: int, count: int) -> NDArray[np.int32]:
        if rows.lengths[index] == 1:  # certain: nothing was written
            return np.zeros(count, np.int32)
        if self._coder is not None:
            symbols: NDArray[np.int32] = self._coder.decode(_model(rows, index), count)
            return symbols
        freqs, cums = rows.lists(index)
        state, words, found = self._state, self._words, []
        for _ in repeat(None, count):
            quantile = state & _MASK
            symbol = bisect_right(cums, quantile) - 1
            state = (state >> PRECISION) * freqs[symbol] + quantile - cums[symbol]
            if state < _LOW and words:
                state = state << 32 | words.pop()
            found.append(symbol)
        self._state = state
        return np.array(found, np.int32)


def _stretches(ids: Ints) -> Iterator[tuple[int, int]]:
    """(table, count) of each stretch of equal ids; ``ids`` is sorted."""
    if len(ids) == 0:
        return
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    counts = np.diff(np.append(starts, len(ids)))
    yield from zip(ids[starts].tolist(), counts.tolist(), strict=True)


def _encode_plain(runs: Sequence[Run], check: int) -> NDArray[np.uint32]:
    state, words = check, []
    for values, ids, rows in reversed(runs):
        order = np.argsort(ids, kind="stable")[::-1]
        places = rows.places(values[order], ids[order])
        freqs, cums = rows.freqs[places], rows.cums[places]
        for freq, rest, cum in zip(freqs.tolist(), (TOTAL - freqs).tolist(), cums.tolist(), strict=True):
            if state >> _FLUSH >= freq:
                words.append(state & _WORD_MASK)
                state >>= 32
            state += state // freq * rest + cum  # = (state // freq) * TOTAL + state % freq + cum
    words.append(state & _WORD_MASK)
    if state >> 32:
        words.append(state >> 32)
    return np.array(words, np.uint32)


def _encode_fast(runs: Sequence[Run], check: int) -> NDArray[np.uint32]:
    coder = constriction.stream.stack.AnsCoder(np.array([check], np.uint32))
    for values, ids, rows in reversed(runs):
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        rows.places(values, ids)  # refuses what lies outside: constriction's answer to it would be less clear
        symbols = (values[order] - rows.offsets[ordered]).astype(np.int32)
        end = len(symbols)
        for index, count in reversed(list(_stretches(ordered))):
            if rows.lengths[index] > 1:
                coder.encode_reverse(symbols[end - count : end], _model(rows, index))
            end -= count
    words: NDArray[np.uint32] = coder.get_compressed()
    return words


def _model(rows: Rows, index: int) -> Any:
    """constriction's model of one row. It adds 1 to every weight and shares the rest: given freq - 1 it makes freq."""
    models: dict[int, Any] = rows.__dict__.setdefault("_models", {})
    if index not in models:
        weights = (rows.freqs[rows.row(index)] - 1).astype(np.float64)
        models[index] = constriction.stream.model.Categorical(weights, perfect=False)
    return models[index]
