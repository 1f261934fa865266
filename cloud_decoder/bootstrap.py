"""What a cloud of one role shares with its fleet, and what is its own: the store's address, the cache, its name."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Callable
from typing import Any

from sqlalchemy import URL

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.images.disk_cache import Cache
from cloud_decoder.settings import Settings


def soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Call it in the loop, from any thread; a loop that has closed needs it no more."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)


def cache_of(settings: Settings) -> Any:
    """The fleet's shared cache, or this machine's own."""
    if settings.cache_url:
        from cloud_decoder.images.object_cache import SharedCache

        return SharedCache(settings.cache_url, settings.cache_bytes)
    return Cache(settings.data_dir / "cache", settings.cache_bytes)


def own_folder(settings: Settings) -> contextlib.ExitStack:
    """Holds the data folder's lock until it is closed, where the store is there. ``StoreUnavailable`` where another
    cloud works there: each would take the other's leases for those of its own last life.
    """
    held = contextlib.ExitStack()
    if settings.database_url is None:
        lock = held.enter_context((settings.data_dir / "lock").open("wb"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            held.close()
            raise StoreUnavailable(
                f"another cloud works in {settings.data_dir}: stop it, or give this one AEIC_CLOUD_DATA_DIR of its own"
            ) from error
    return held


def owner_of(settings: Settings) -> str:
    """The name of the leases: two living processes must not share one."""
    if settings.role == "all" or settings.instance != Settings.model_fields["instance"].default:
        return settings.instance
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"[-128:]


def database_url(settings: Settings) -> str | URL:
    """Where the store is."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return URL.create("sqlite", database=str(settings.data_dir / "store.db"))
