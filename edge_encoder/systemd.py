"""Notifies systemd that the service is ready, alive or stopping (sd_notify), when the unit has `Type=notify`.

READY is sent after warm-up. WATCHDOG is sent from the event loop and not from a timer thread, so that systemd restarts
a service whose loop hangs.
"""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> bool:
    """Sends `READY=1`, `WATCHDOG=1` or `STOPPING=1`; False without a notification socket."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    # A leading @ means Linux's abstract namespace, whose names start with a zero byte.
    target = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(message.encode(), target)
        return True
    return False
