"""Tells systemd that the service is ready, alive or stopping (sd_notify), where systemd asked to be told.

READY comes after warm-up, and WATCHDOG from the loop that does the work, not from a timer thread: a loop that hangs is
restarted.
"""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> bool:
    """Sends `READY=1`, `WATCHDOG=1` or `STOPPING=1`; False where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    # A leading @ means Linux's abstract namespace, whose names start with a zero byte.
    target = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(message.encode(), target)
        return True
    return False
