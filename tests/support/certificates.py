"""Certificates made by openssl, for tests of TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

MISSING = shutil.which("openssl") is None
"""Whether the tests must be skipped."""

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def authority(folder: Path, name: str, days: int = 30) -> Path:
    """``name.pem`` and ``name.key`` in ``folder``; the path of the former."""
    _openssl(
        folder, "req", "-x509", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}",
        "-days", str(days),
    )  # fmt: skip
    return folder / f"{name}.pem"


def certificate(folder: Path, name: str, authority: str, days: int = 2) -> Path:
    """``name.pem`` and ``name.key`` for cloud.test and 127.0.0.1, signed by an :func:`authority` of the folder."""
    (folder / "names").write_text("subjectAltName=DNS:cloud.test,IP:127.0.0.1")
    _openssl(folder, "req", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}.test")
    _openssl(
        folder, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
        "-CAcreateserial", "-extfile", "names", "-out", f"{name}.pem", "-days", str(days),
    )  # fmt: skip
    return folder / f"{name}.pem"


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
