"""Which hosts a service answers for, and which web pages may call it.

A page in a browser on the same network can reach a service that has no password: by a form or a script of another
origin, or by one of its own host names that resolves to the service's address (DNS rebinding). So a service answers
only for names that cannot be registered outside, and for those in ``allowed_hosts``. It refuses a request that a
browser sends for a page of another origin, unless ``cors_origins`` has that origin.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from aeic_service.http import problems

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+)(:[0-9]{1,5})?")
_PRIVATE = (".localhost", ".local", ".internal", ".home.arpa", ".svc")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Origins:
    """ASGI middleware: 421 for a foreign host, 403 for a foreign origin.

    ``allowed_hosts`` and ``cors_origins`` are lists separated by commas; ``*`` allows all. ``prefix`` is that of the
    service's variables, for the messages.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: str, cors_origins: str, prefix: str) -> None:
        self._app, self._prefix = app, prefix
        self._hosts = {name.lower().strip("[]") for name in split(allowed_hosts)}
        self._origins = {origin.lower().rstrip("/") for origin in split(cors_origins)}
        self._own = {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, origin = headers.get("host", "").lower(), headers.get("origin")
            if host and not self._answers_for(host):
                answer = problems.problem(
                    421,
                    f"this service does not answer for the host {host[:80]!r}: use its address, or add the name to"
                    f" {self._prefix}ALLOWED_HOSTS",
                    "foreign-host",
                )
                return await answer(scope, receive, send)
            if origin is not None and not self._may_call(origin.lower(), host, headers.get("sec-fetch-site")):
                answer = problems.problem(
                    403,
                    f"pages of {origin[:80]!r} may not call this service: add the origin to {self._prefix}CORS_ORIGINS",
                    "foreign-origin",
                )
                return await answer(scope, receive, send)
        await self._app(scope, receive, send)

    def _answers_for(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").rstrip(".")
        return "*" in self._hosts or name in self._hosts or name in self._own or is_private(name)

    def _may_call(self, origin: str, host: str, site: str | None) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        if site == "same-origin":  # browsers set it, pages cannot; it holds behind a proxy that changes the host
            return True
        parts = urlsplit(origin)
        default = _DEFAULT_PORTS.get(parts.scheme, "")
        return bool(parts.netloc) and parts.netloc.removesuffix(default) == host.removesuffix(default)


def is_private(name: str) -> bool:
    """Whether a host name cannot be registered publicly: an IP address, a name without a dot, or a top-level domain
    that public DNS does not serve."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(_PRIVATE)
    return True


def split(text: str) -> list[str]:
    """The parts of a setting that is a list separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
