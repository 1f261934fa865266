"""TLS of the gRPC port: certificates that are read again when their files change, and certificates of the edges.

gRPC asks for the certificates at each handshake. Connections that are open keep theirs, so no stream is dropped.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

log = logging.getLogger(__name__)

Stamps = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: ``cert`` and its ``key``; ``client_ca``, if given, has the authorities of the edges."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """What the server listens with. ``OSError`` where a file cannot be read.

        With ``client_ca`` a client without a certificate of one of its authorities cannot connect.
        """
        reload: Any = _Reload(self)  # it may return None, which the stubs do not know
        return grpc.dynamic_ssl_server_credentials(self.read(), reload, self.client_ca is not None)

    def read(self) -> grpc.ServerCertificateConfiguration:
        """The certificates as gRPC takes them."""
        pair = (self.key.read_bytes(), self.cert.read_bytes())
        authorities = None if self.client_ca is None else self.client_ca.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair], authorities)

    def stamps(self) -> Stamps:
        """Inode and time of change of each file; they differ after a file was replaced or written."""
        files = (self.cert, self.key) if self.client_ca is None else (self.cert, self.key, self.client_ca)
        return tuple((found.st_ino, found.st_mtime_ns) for found in (file.stat() for file in files))


class _Reload:
    """Called by gRPC at each handshake, on gRPC's own thread. Returns new certificates, or None if unchanged."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = files.stamps()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            stamps = self._files.stamps()
            if stamps == self._seen:
                return None
            config = self._files.read()
            self._seen = stamps
        except OSError as error:  # the files are being replaced; the next handshake looks again
            log.warning("the certificates cannot be read, the earlier ones stay in use: %s", error)
            return None
        log.info("the certificates have been read again")
        return config
