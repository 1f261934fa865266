"""A worker beside a store, without the rest of the cloud. The fixture ``running`` of tests/cloud/worker starts it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from cloud_decoder.worker.worker import Worker

Running = Callable[..., AbstractAsyncContextManager[Worker]]
"""Runs a worker while its context lasts. The arguments are those of ``WorkerSettings``."""
