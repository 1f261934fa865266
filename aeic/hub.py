"""A bundle by its Hugging Face id, ``OWNER/NAME@REVISION``.

The revision is a complete commit id, because a branch or a tag can move.

The files land in Hugging Face's own cache and are checked against the digests in their manifest, like any bundle's.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from aeic.errors import BundleError
from aeic.extras import remedy

_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})@(?P<revision>[\w./-]{1,100})")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = ["bundle.json", "*.onnx", "*.npz", "*.safetensors", "*.md", "*.jsonl"]


def folder(named: str | Path) -> Path:
    """The folder that ``named`` is, or the one that the bundle of this id was fetched into.

    ``BundleError`` for an id without a whole commit, where huggingface_hub is missing, or where fetching fails.
    """
    found = _ID.fullmatch(str(named))
    if found is None or Path(named).exists():
        return Path(named)
    if not _COMMIT.fullmatch(found["revision"]):
        raise BundleError(
            f"{named} names no commit: give all 40 digits of a commit after the @, so that the bundle cannot change"
        )
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        raise BundleError(f"bundles by id need huggingface_hub: {remedy('hub')}") from None
    try:
        return Path(hub.snapshot_download(found["repository"], revision=found["revision"], allow_patterns=_FILES))
    except Exception as error:  # the library's, requests' and the system's errors share no narrower base
        raise BundleError(f"{named} could not be fetched ({error}): check the id, the network and HF_TOKEN") from error
