"""The disk cache: its size is bounded, and it never returns damaged bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloud_decoder.images.disk_cache import DiskCache

A, B, C = ("a" * 64), ("b" * 64), ("c" * 64)


def test_put_get_and_reopen(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10_000)
    assert cache.get(A, "png") is None
    assert cache.put(A, "png", b"picture") and not cache.put(A, "png", b"picture")
    assert cache.get(A, "png") == b"picture" and cache.has(A, "png")
    assert DiskCache(tmp_path, 10_000).get(A, "png") == b"picture"
    assert cache.hits == 1 and cache.misses == 1


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 300)
    cache.put(A, "png", bytes(100))
    cache.put(B, "png", bytes(100))
    cache.get(A, "png")
    cache.put(C, "png", bytes(100))
    assert [cache.has(x, "png") for x in (A, B, C)] == [True, False, True]
    assert cache.total_bytes <= 300 and len(list(tmp_path.glob("??/*"))) == 2
    assert not cache.put(B, "png", bytes(1000))


def test_all_forms_of_a_picture_are_removed(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10_000)
    for digest in (A, B):
        for variant in ("png", "webpw320", "sizes"):
            cache.put(digest, variant, b"picture")
    assert cache.remove({A, C}) == 3 and cache.remove({A}) == 0
    assert not cache.has(A, "png") and cache.get(B, "sizes") == b"picture"
    assert len(list(tmp_path.glob("??/*"))) == 3 == len(DiskCache(tmp_path, 10_000))
    assert cache.put(A, "png", b"again")


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_file_is_a_miss_and_can_be_put_again(tmp_path: Path, damage: str) -> None:
    cache = DiskCache(tmp_path, 10_000)
    cache.put(A, "png", b"picture" * 10)
    (path,) = tmp_path.glob("??/*")
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"flip": bytes(data), "cut": bytes(data[:40]), "empty": b""}[damage])
    assert cache.get(A, "png") is None and cache.damaged == 1
    assert cache.put(A, "png", b"again") and cache.get(A, "png") == b"again"


def test_a_smaller_bound_and_leftovers_at_start(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    for age, name in enumerate((A, B)):
        cache.put(name, "png", bytes(100))
        os.utime(next(tmp_path.glob(f"{name[:2]}/*")), (age, age))
    (tmp_path / f".{C}-png.1234").write_bytes(b"half a fi")
    smaller = DiskCache(tmp_path, 200)
    assert [smaller.has(x, "png") for x in (A, B)] == [False, True]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("digest", ["../" * 20 + "aaaa", "A" * 64, "", "a" * 63])
def test_names_are_never_paths(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError):
        DiskCache(tmp_path, 1000).put(digest, "png", b"x")
