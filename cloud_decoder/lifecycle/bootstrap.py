"""Builds from the settings: the database URL, the cache, the data folder's lock and the lease owner's name."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import URL

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.images.cache import PictureCache
from cloud_decoder.images.disk_cache import DiskCache
from cloud_decoder.settings import Settings


def cache_of(settings: Settings) -> PictureCache:
    """The shared cache of the fleet, or a cache in the data folder."""
    if settings.cache_url:
        from cloud_decoder.images.object_cache import ObjectCache

        return ObjectCache(settings.cache_url, settings.cache_bytes)
    return DiskCache(settings.data_dir / "cache", settings.cache_bytes)


def folders_of(settings: Settings) -> dict[str, Path]:
    """The folders whose disks may fill up: ``data``, and ``cache`` where the shared cache is a folder."""
    folders = {"data": settings.data_dir}
    if settings.cache_url.startswith("file:"):
        folders["cache"] = Path(unquote(urlsplit(settings.cache_url).path))
    return folders


def own_folder(settings: Settings) -> contextlib.ExitStack:
    """Hold the lock of the data folder until it is closed, where the store is in that folder.

    ``StoreUnavailable`` where another cloud works there: each would return the leases of the other to the queue.
    """
    held = contextlib.ExitStack()
    if settings.database_url is None:
        lock = held.enter_context((settings.data_dir / "lock").open("wb"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            held.close()
            raise StoreUnavailable(
                f"another cloud is running in {settings.data_dir}: stop it, or give this one its own"
                " AEIC_CLOUD_DATA_DIR"
            ) from error
    return held


def owner_of(settings: Settings) -> str:
    """The name on the leases of this process. No two living processes may have the same."""
    if settings.role == "all" or settings.instance != Settings.model_fields["instance"].default:
        return settings.instance
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"[-128:]


def database_url(settings: Settings) -> str | URL:
    """The address of the store."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return URL.create("sqlite", database=str(settings.data_dir / "store.db"))
