"""SQLite's write-ahead log, read without SQLite: whether it is damaged, and which pages it holds.

SQLite takes the first frame of its log whose checksum does not match for the end of the log, and overwrites what
follows. After a power cut that is right: the last transaction was torn before it was acknowledged. After a flipped bit
it silently discards every later commit. So the log is scanned before SQLite opens the file. It is damaged when a whole
commit stands behind the first frame that does not match, when one changed word explains the mismatch, or when SQLite's
index of the log (the -shm file) names a commit that does not verify. SQLite writes the index after it has synced the
log, so that commit was once whole. A kill leaves the index on disk, a power cut may not. Without the index, wider
damage to the last transaction alone cannot be distinguished from a torn write. It is treated as one, and the whole
records in it are put back (edge_encoder/spool/database.py, cloud_decoder/store/log_recovery.py).

Format: https://sqlite.org/fileformat2.html#walformat, section 4; of the index, https://sqlite.org/walformat.html,
section 2.1.

    header 32 bytes: magic | version | page size | sequence | salt (8) | checksum (8)
    frame: page number | pages after commit, or 0 | salt (8) | checksum (8) | page
    index, twice, in native byte order: version | 0 | changes | flags and page size | last frame committed
        | pages | checksum of that frame (8) | salt (8) | checksum (8)

The checksum of a frame continues that of the frame before it, so a frame behind a damaged one can still be verified,
from the checksum stored in its predecessor.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct(">IIII8s8s")
_FRAME = struct.Struct(">II8s8s")
FRAME_BYTES = _FRAME.size
"""What precedes the content of a page in the log. It begins with the page's number, big-endian."""
_INDEX = struct.Struct("=IIIIII8s8sII")
_VERSION = 3_007_000
_LITTLE, _BIG = 0x377F0682, 0x377F0683
_MOST_PARTS = 16  # of what lies behind the damage; each is read for itself
_PAGE_SIZE = 4096  # SQLite's default, where the header cannot say it
_GROWTH_PAGES = 4096  # by which a transaction that was never committed may have extended the database


@dataclass(slots=True)
class Log:
    """What a log holds. A page is (its number in the database, the offset of its content in the log); `pages` is how
    many the database has, by the largest commit.

    `committed`: the pages that SQLite would use, in order. The others verify too and are of the present generation, but
    SQLite would not use them: `behind` are those up to the last commit behind the damage, and `uncommitted` those after
    it. These may be half of a transaction that was never acknowledged. `behind` has a further part wherever the chain
    of checksums breaks and one word does not explain it: what follows may be the rest of a transaction that failed and
    was partly overwritten by a shorter one.

    `tail`: where the content of every frame of the present generation lies that SQLite would not use, whether it
    verifies or not. `incomplete`: only the index says that the last commit was whole, so nothing may say what was in
    the part of it that is gone.
    """

    page_size: int
    damaged: bool = False
    incomplete: bool = False
    pages: int = 0
    committed: list[tuple[int, int]] = field(default_factory=list)
    behind: list[list[tuple[int, int]]] = field(default_factory=list)
    uncommitted: list[tuple[int, int]] = field(default_factory=list)
    tail: list[int] = field(default_factory=list)


def scan(path: Path) -> Log | None:
    """Reads the log at `path`, of a database that this process has not open: closing the index would drop SQLite's
    locks on it. None when the log is missing or holds no frame. OSError when it cannot be read."""
    try:
        if path.stat().st_size < _HEADER.size + _FRAME.size:
            return None
    except FileNotFoundError:
        return None
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw,
        memoryview(raw) as view,
    ):
        log = _scan(view)
        committed = _committed_by_index(path, bytes(view[16:24]))
        if committed > len(log.committed):
            log.incomplete, log.damaged = not log.damaged, True
        return log


def is_missing(path: Path) -> bool:
    """Whether the log at `path` is gone or empty, although SQLite's index of it names commits that are not in the
    database: it was deleted or emptied, and the process killed before it could write them again."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size >= _HEADER.size + _FRAME.size:
            return False
    committed, moved = _moved(path)
    return committed > moved


def unmoved(path: Path, log: Log) -> list[tuple[int, int]] | None:
    """The pages of the damaged log at `path` that no checkpoint has moved into the database, in order.

    Not None only where the database and these pages make the log superfluous: by SQLite's index, the damage is in what
    was moved, and everything after it verifies. SQLite would put older pages in the place of newer ones in the
    database, so these pages have to be moved too and the log removed.
    """
    committed, moved = _moved(path)
    with path.open("rb") as file:
        salt = file.read(_HEADER.size)[16:24]
    if not moved or _committed_by_index(path, salt) != committed:
        return None
    step = _FRAME.size + log.page_size
    whole = {page[1] // step + 1: page for pages in (log.committed, *log.behind) for page in pages}
    if all(number in whole for number in range(1, moved + 1)):
        return None
    rest = [whole.get(number) for number in range(moved + 1, max(committed, *whole) + 1)]
    found = [page for page in rest if page is not None]
    return found if len(found) == len(rest) else None


def set_moved(path: Path) -> None:
    """Records in SQLite's index of the log at `path` that all of it is in the database, as a checkpoint does."""
    committed, _ = _moved(path)
    with _index_of(path).open("r+b") as file:
        file.seek(2 * _INDEX.size)
        file.write(committed.to_bytes(4, sys.byteorder))
        file.flush()
        os.fsync(file.fileno())


def _moved(path: Path) -> tuple[int, int]:
    """The frames of the log at `path` that are committed, and how many of them are in the database, by the index."""
    head = _index(path)
    if head is None:
        return 0, 0
    with _index_of(path).open("rb") as file:
        file.seek(2 * _INDEX.size)
        return int(head[4]), int.from_bytes(file.read(4), sys.byteorder)


def _index_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix("-wal") + "-shm")


def _index(path: Path) -> tuple[Any, ...] | None:
    """The header of SQLite's index of the log at `path`: the fields of _INDEX; None where there is none."""
    try:
        with _index_of(path).open("rb") as file:
            first, second = file.read(_INDEX.size), file.read(_INDEX.size)
    except OSError:
        return None
    if len(first) < _INDEX.size or first != second:
        return None
    order = "<" if sys.byteorder == "little" else ">"
    fields = _INDEX.unpack(first)
    checked = struct.pack(">II", *fields[-2:]) == _checksum(bytes(8), memoryview(first)[:40], order)
    return fields if checked and fields[0] == _VERSION else None


def _committed_by_index(path: Path, salt: bytes) -> int:
    """How many frames of the log at `path`, which has that salt, are committed, as SQLite's index has it; 0 where it
    does not say."""
    fields = _index(path)
    return int(fields[4]) if fields is not None and fields[7] == salt else 0


def _scan(raw: memoryview) -> Log:
    magic, version, page_size, _, salt, stored = _HEADER.unpack_from(raw)
    order = ">" if magic == _BIG else "<"
    fine = magic in (_LITTLE, _BIG) and version == _VERSION and 512 <= page_size <= 65_536
    fine = fine and not page_size & (page_size - 1)
    fine = fine and _checksum(bytes(8), raw[:24], order) == stored
    log = Log(page_size if fine else _PAGE_SIZE, damaged=not fine)
    if not fine and len(raw) >= _HEADER.size + _FRAME.size:
        salt = _FRAME.unpack_from(raw, _HEADER.size)[2]
    intact, open_pages, before = fine, [], bytes(stored)
    for offset in _frames(raw, log.page_size):
        number, commit, own_salt, own = _FRAME.unpack_from(raw, offset)
        start = offset + _FRAME.size
        matches = False
        if intact or own_salt == salt:
            matches = _checksum(before, raw[offset : offset + 8], order, raw[start : start + log.page_size]) == own
        previous, before = before, bytes(own)
        if intact and matches and own_salt == salt:
            open_pages.append((number, start))
            log.tail.append(start)
            if commit:
                log.pages = max(log.pages, commit)
                log.committed += open_pages
                open_pages, log.tail = [], []
            continue
        # The log ends here for SQLite. Frames of an earlier generation may follow, with another salt.
        if own_salt == salt:
            log.tail.append(start)
        if own_salt == salt and matches:
            log.damaged |= commit > 0
        elif intact or (own_salt == salt and len(log.behind) < _MOST_PARTS):
            head, page = raw[offset : offset + 8], raw[start : start + log.page_size]
            explained = own_salt == salt and _one_word_explains(previous, head, order, page, own)
            if intact and not (explained and _is_torn_header(raw, offset, previous, log, order)):
                log.damaged |= matches or explained
            elif not explained and log.behind:
                log.behind.append([])
        intact = False
        if matches and number and own_salt == salt:
            log.pages = max(log.pages, commit)
            open_pages.append((number, start))
            if commit:
                log.behind = log.behind or [[]]
                log.behind[-1] += open_pages
                open_pages = []
    log.uncommitted = open_pages
    return log


def _frames(raw: memoryview, page_size: int) -> Iterator[int]:
    step = _FRAME.size + page_size
    return iter(range(_HEADER.size, len(raw) - step + 1, step))


def _checksum(before: bytes, head: memoryview, order: str, page: memoryview | None = None) -> bytes:
    """The checksum after the words of `head` and `page`, continued from `before`; 8 bytes as they are stored.

    SQLite adds the words one after another: z[k+2] = z[k+1] + z[k] + word[k] modulo 2^32, starting from the two halves
    of `before`. That is a linear recurrence, so the last two values are sums of the words, weighted with Fibonacci
    numbers.
    """
    kind = np.dtype(f"{order}u4")
    words = np.frombuffer(head, kind)
    if page is not None:
        words = np.concatenate([words, np.frombuffer(page, kind)])
    count = len(words)
    first, second = struct.unpack(">II", before)
    fibonacci = _fibonacci(count + 2)  # fibonacci[k] is F(k): 0, 1, 1, 2, ...
    last = int((words[: count - 1] * fibonacci[count - 1 : 0 : -1]).sum(dtype=np.uint32))
    last += int(fibonacci[count - 1]) * first + int(fibonacci[count]) * second
    end = int((words * fibonacci[count:0:-1]).sum(dtype=np.uint32))
    end += int(fibonacci[count]) * first + int(fibonacci[count + 1]) * second
    return struct.pack(">II", last & 0xFFFFFFFF, end & 0xFFFFFFFF)


def _one_word_explains(before: bytes, head: memoryview, order: str, page: memoryview, stored: bytes) -> bool:
    """Whether the checksum would match if one word of `head`, of `page` or of the checksum itself were another.

    If word k of n is off by d, the two halves of the checksum are off by d F(n - 1 - k) and d F(n - k). One of these
    two numbers is odd, so a d exists exactly when both cross products are equal.
    """
    last, end, of_last, of_end = _mismatch(before, head, order, page, stored)
    return not last or not end or bool(np.any(of_end * last == of_last * end))


def _one_bit_explains(before: bytes, head: memoryview, order: str, page: memoryview, stored: bytes) -> bool:
    """Whether the checksum would match if one bit of `head` or of `page` were flipped: d is a power of two."""
    last, end, of_last, of_end = _mismatch(before, head, order, page, stored)
    return any(
        bool(np.any((of_last << bit == last) & (of_end << bit == end)))
        for last, end in ((last, end), (-last, -end))
        for bit in np.arange(32, dtype=np.uint32)
    )


def _mismatch(
    before: bytes, head: memoryview, order: str, page: memoryview, stored: bytes
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]:
    """By how much both halves of the checksum are off, of shape (1,), and for each word by how much they are when it is
    off by 1."""
    found = np.frombuffer(_checksum(before, head, order, page), ">u4").astype(np.uint32)
    last, end = np.split(found - np.frombuffer(stored, ">u4").astype(np.uint32), 2)
    count = (len(head) + len(page)) // 4
    fibonacci = _fibonacci(count + 2)
    return last, end, fibonacci[count - 1 :: -1], fibonacci[count:0:-1]


def _is_torn_header(raw: memoryview, offset: int, before: bytes, log: Log, order: str) -> bool:
    """Whether the frame at `offset` was whole until a write of a part of another header: with the number of another
    page, and no commit, it gives a checksum from which the frame behind it verifies.

    So it was the first of a transaction that was never committed, and the next transaction was torn in its first bytes.
    One word may seem to explain the mismatch then, since page numbers change only the high bytes of the checksum. So
    may another page number where one bit of a commit is flipped. A commit that one bit explains is therefore damaged.
    """
    step = _FRAME.size + log.page_size
    behind = offset + step
    if behind + step > len(raw) or raw[offset + 8 : offset + 16] != raw[behind + 8 : behind + 16]:
        return False
    start = offset + _FRAME.size
    _, commit, _, own = _FRAME.unpack_from(raw, offset)
    if commit and _one_bit_explains(before, raw[offset : offset + 8], order, raw[start:behind], own):
        return False
    base = struct.unpack(">II", _checksum(before, memoryview(bytes(8)), order, raw[start:behind]))
    words = np.arange(1, log.pages + _GROWTH_PAGES, dtype=">u4").view(f"{order}u4").astype(np.uint32)
    count = 2 + log.page_size // 4
    fibonacci = _fibonacci(count + 2)
    last, end = (np.uint32(base[k]) + words * fibonacci[count - 1 + k] for k in (0, 1))
    head, page = raw[behind : behind + 8], raw[behind + _FRAME.size : behind + step]
    rest = struct.unpack(">II", _checksum(bytes(8), head, order, page))
    stored = struct.unpack(">II", _FRAME.unpack_from(raw, behind)[3])
    found = [np.uint32(rest[k]) + last * fibonacci[count - 1 + k] + end * fibonacci[count + k] for k in (0, 1)]
    return bool(np.any((found[0] == stored[0]) & (found[1] == stored[1])))


@functools.cache
def _fibonacci(count: int) -> NDArray[np.uint32]:
    values = [0, 1]
    while len(values) < count:
        values.append((values[-1] + values[-2]) & 0xFFFFFFFF)
    return np.array(values[:count], np.uint32)
