"""Originals are encrypted at rest under a key, and what the present key does not open is deleted."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from edge_encoder.originals.cipher import Cipher, parse_key
from edge_encoder.originals.ring import Kept, OriginalRing
from edge_encoder.settings import EdgeSettings

KEY, OTHER = "0f" * 32, "a1" * 32
ORIGINAL = Kept(uuid.UUID(int=7), "gate at the north side", b"a picture of the gate" * 50, 1_700_000_000_000, 4)


def ring(folder: Path, key: str | None = KEY) -> OriginalRing:
    cipher = None if key is None else Cipher.of(SecretStr(key))
    return OriginalRing(folder, max_bytes=1 << 20, cipher=cipher)


def only(folder: Path) -> Path:
    (path,) = folder.glob("*.original")
    return path


def test_nothing_of_an_original_can_be_read_and_all_of_it_comes_back(tmp_path: Path) -> None:
    kept = ring(tmp_path)
    assert kept.keep(ORIGINAL) and kept.read(ORIGINAL.id) == ORIGINAL
    raw = only(tmp_path).read_bytes()
    for secret in (b"gate", b"source_id", ORIGINAL.id.hex.encode(), ORIGINAL.picture[:16]):
        assert secret not in raw
    assert kept.bytes == len(raw)
    again = ring(tmp_path)
    assert len(again) == 1 and again.bytes == len(raw) and again.read(ORIGINAL.id) == ORIGINAL
    assert again.keep(ORIGINAL) and only(tmp_path).read_bytes() != raw, "the same nonce twice"


@pytest.mark.parametrize("at", [9, 20, 33, 45, 60, 200, -1])
def test_a_changed_byte_anywhere_is_noticed(tmp_path: Path, at: int) -> None:
    kept = ring(tmp_path)
    kept.keep(ORIGINAL)
    path = only(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    assert kept.read(ORIGINAL.id) is None and not path.exists()


def test_the_parts_of_two_files_cannot_be_exchanged() -> None:
    cipher = Cipher(parse_key(KEY))
    first, second = cipher.pack(b"{}", b"one"), cipher.pack(b"{}", b"two")
    assert cipher.unpack(b"".join(first)) == (b"{}", b"one")
    with pytest.raises(ValueError):
        cipher.unpack(first[0] + second[1])
    # The description of one file beside the picture of the other, each with its own nonce.
    mixed = first[0][:28] + second[0][28:40] + first[0][40:]
    with pytest.raises(ValueError):
        cipher.unpack(mixed + second[1])
    with pytest.raises(ValueError):
        cipher.meta(mixed)


@pytest.mark.parametrize(("before", "after"), [(KEY, OTHER), (None, KEY), (KEY, None)])
def test_what_the_present_key_does_not_open_is_deleted(
    tmp_path: Path, before: str | None, after: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert ring(tmp_path, before).keep(ORIGINAL)
    with caplog.at_level(logging.WARNING):
        found = ring(tmp_path, after)
    assert len(found) == 0 and not list(tmp_path.iterdir()) and "1 originals" in caplog.text
    assert found.keep(ORIGINAL) and found.read(ORIGINAL.id) == ORIGINAL


def test_a_key_is_64_hexadecimal_digits_and_is_never_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("secret", "zz" * 32, "0f" * 31, "0f" * 33, " " + "0f" * 32):
        with pytest.raises(ValidationError, match="64 hexadecimal digits") as refused:
            EdgeSettings(originals_key=SecretStr(wrong))
        assert "secret" not in str(refused.value.errors(include_input=False))
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    monkeypatch.setenv("AEIC_EDGE_ORIGINALS_KEY_FILE", str(file))
    settings = EdgeSettings()
    assert settings.originals_key is not None and settings.originals_key.get_secret_value() == KEY
    assert KEY not in repr(settings)
    assert Cipher.of(None) is None and Cipher.of(SecretStr("")) is None
