"""When the certificates in PEM files expire, for the metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

Stamp = tuple[int, int]


class Certificates:
    """PEM files, by the name of their setting; a setting that is None has no file.

    ``chains`` are the service's own certificates: a chain is valid until the first of its certificates expires.
    ``authorities`` are what peers are checked against: such a file is valid until the last of its certificates expires.
    """

    def __init__(self, *, chains: Mapping[str, Path | None], authorities: Mapping[str, Path | None]) -> None:
        given = [(name, path, min) for name, path in chains.items()]
        given += [(name, path, max) for name, path in authorities.items()]
        self._files = [(name, path, end) for name, path, end in given if path is not None]
        self._read: dict[str, tuple[Stamp | None, float | None]] = {}

    def expiry_seconds(self) -> dict[str, float]:
        """The Unix time at which each file expires. A file is read again after it has changed.

        A file without a readable certificate is logged once and is not in the answer.
        """
        found = {}
        for name, path, end in self._files:
            stamp, expiry = _stamp(path), None
            if name in self._read and self._read[name][0] == stamp:
                expiry = self._read[name][1]
            else:
                try:
                    expiry = end(_ends(path))
                except (OSError, ValueError) as error:
                    log.warning("%s: %s has no readable certificate: %s", name, path, error)
                self._read[name] = (stamp, expiry)
            if expiry is not None:
                found[name] = expiry
        return found


def _stamp(path: Path) -> Stamp | None:
    """Inode and time of change, which differ after a file was replaced or written; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _ends(path: Path) -> list[float]:
    """Unix time at which each certificate of a file expires. ``ValueError`` if there is none."""
    from cryptography import x509  # takes 20 MB, and most boxes have no certificate of their own

    return [one.not_valid_after_utc.timestamp() for one in x509.load_pem_x509_certificates(path.read_bytes())]
