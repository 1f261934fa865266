"""The research code's entropy coder in plain Python: byte-wise rANS, 32-bit state, two substreams, escapes.

Every read is checked: a short or altered stream raises an error. Source: docs/model.md section 8.4.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from aeic.errors import Damaged, Truncated
from aeic_nets.official.tables import PRECISION, Table

LOWEST = 1 << 23
"""Lower limit of the state, and where the encoder starts."""
SUBSTREAMS = 2
_MASK = (1 << PRECISION) - 1
_MAX_UNITS = 16
"""More digits than an escape of a 32-bit number has."""


class SubstreamDecoder:
    """One rANS substream."""

    def __init__(self, data: bytes) -> None:
        """``Truncated`` if there is not even a state."""
        if len(data) < 4:
            raise Truncated("an official stream ends inside its state: fetch the file again")
        self._state = int.from_bytes(data[:4], "little")
        self._data, self._at = data, 4

    def symbol(self, table: Table) -> int:
        """The next value under ``table``."""
        cumulative = self._state & _MASK
        k = bisect_right(table.cdf, cumulative) - 1
        self._state = (table.cdf[k + 1] - table.cdf[k]) * (self._state >> PRECISION) + cumulative - table.cdf[k]
        while self._state < LOWEST:
            self._state = self._state << 8 | self._byte()
        if k == table.length:
            k = self._escaped(table.length)
        return k + table.offset

    def finish(self) -> None:
        """``Damaged`` unless every byte was used and the state is where the encoder began."""
        if self._at != len(self._data) or self._state != LOWEST:
            raise Damaged("the official stream does not end where it should: another model, or altered bytes")

    def _escaped(self, length: int) -> int:
        count = 0
        while (unit := self._unit()) == 3:
            count += 3
            if count > _MAX_UNITS:
                raise Damaged("an escape of an official stream is too long: fetch the file again")
        count += unit
        value = sum(self._unit() << 2 * i for i in range(count))
        return -(value + 1) // 2 if value % 2 else length + value // 2

    def _unit(self) -> int:
        value = self._state & 3
        self._state >>= 2
        if self._state < LOWEST:
            self._state = self._state << 8 | self._byte()
        return value

    def _byte(self) -> int:
        if self._at == len(self._data):
            raise Truncated("an official stream ends too early: another model, or fetch the file again")
        self._at += 1
        return self._data[self._at - 1]


class StreamDecoder:
    """A whole coder stream: each array that is asked for is half in one substream, half in the other."""

    def __init__(self, data: bytes) -> None:
        """``Damaged`` or ``Truncated`` for a head that makes no sense."""
        self._parts = [SubstreamDecoder(part) for part in split(data)]

    def read(self, tables: Sequence[Table], indexes: Sequence[int]) -> list[int]:
        """The next array, a table index for each value; -1 stands for a value that is not coded, 0."""
        half = len(indexes) // SUBSTREAMS
        values = []
        for at, index in enumerate(indexes):
            part = self._parts[0 if at < half else 1]
            values.append(part.symbol(tables[index]) if index >= 0 else 0)
        return values

    def finish(self) -> None:
        """To be called after the last array: ``Damaged`` unless both substreams end exactly here."""
        for part in self._parts:
            part.finish()


def encode(arrays: Iterable[tuple[Sequence[Table], Sequence[int], Sequence[int]]]) -> bytes:
    """(tables, indexes, values) of each array in order, to one coder stream: what the research code writes."""
    halves: list[list[tuple[Table, int]]] = [[] for _ in range(SUBSTREAMS)]
    for tables, indexes, values in arrays:
        half = len(indexes) // SUBSTREAMS
        for at, (index, value) in enumerate(zip(indexes, values, strict=True)):
            if index >= 0:
                halves[0 if at < half else 1].append((tables[index], value))
    parts = [_encode_substream(entries) for entries in halves]
    short = all(len(part) < 1 << 16 for part in parts[:-1])
    width = 2 if short else 4
    head = bytes([(SUBSTREAMS - 1) * 16 + short]) + b"".join(len(p).to_bytes(width, "little") for p in parts[:-1])
    return head + b"".join(parts)


def split(data: bytes) -> list[bytes]:
    """The substreams of a coder stream."""
    if not data or data[0] >> 4 != SUBSTREAMS - 1 or data[0] & 15 > 1:
        raise Damaged("this is not a stream of the research code's coder: give its file unchanged")
    width = 2 if data[0] & 1 else 4
    size, start = int.from_bytes(data[1 : 1 + width], "little"), 1 + width
    if len(data) < start + size:
        raise Truncated("an official stream is shorter than its head says: fetch the file again")
    return [data[start : start + size], data[start + size :]]


def _encode_substream(entries: Sequence[tuple[Table, int]]) -> bytes:
    state, out = LOWEST, bytearray()
    for table, value in reversed(entries):
        k = value - table.offset
        units = []
        if not 0 <= k < table.length:
            units, k = _escape(k, table.length), table.length
        for unit in reversed(units):
            while state >= 1 << 29:
                out.append(state & 255)
                state >>= 8
            state = state << 2 | unit
        start, width = table.cdf[k], table.cdf[k + 1] - table.cdf[k]
        while state >= (LOWEST >> PRECISION << 8) * width:
            out.append(state & 255)
            state >>= 8
        state = (state // width << PRECISION) + state % width + start
    return state.to_bytes(4, "little") + bytes(reversed(out))


def _escape(k: int, length: int) -> list[int]:
    value = 2 * (k - length) if k >= length else -2 * k - 1
    digits = []
    while value:
        digits.append(value & 3)
        value >>= 2
    threes, rest = divmod(len(digits), 3)
    return [3] * threes + [rest, *digits]
