"""Bearer tokens and their tenants. A tenant cannot see the frames of another one, nor whether they exist.

This module only finds the tenant: for HTTP by ``Tenant`` (http_api/dependencies.py), for a stream from its Hello
(grpc_api/ingest.py). What separates tenants is the tenant in every query of the store (store/frames.py).
"""

from __future__ import annotations

import hmac
import re

from cloud_decoder.errors import NotAllowed

_TENANT = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")


class Tokens:
    """``text`` is ``tenant:token,tenant:token``; a tenant may have several. Empty: all callers are tenant ``""``."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, bytes]] = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            tenant, separator, token = part.partition(":")
            if not separator or not _TENANT.match(tenant) or len(token) < 8:
                raise ValueError(
                    "AEIC_CLOUD_TOKENS must read tenant:token,tenant:token, each token of at least 8 characters"
                )
            self._tokens.append((tenant, token.encode()))

    @property
    def required(self) -> bool:
        """Whether callers need a token."""
        return bool(self._tokens)

    @property
    def tenants(self) -> int:
        """How many tenants there are."""
        return len({tenant for tenant, _ in self._tokens}) or 1

    def tenant(self, token: str) -> str:
        """The tenant of a token; ``NotAllowed`` for an unknown one. Every known token is compared, in constant time."""
        if not self._tokens:
            return ""
        given, found = token.encode(errors="replace"), None
        for tenant, known in self._tokens:
            if hmac.compare_digest(given, known):
                found = tenant
        if found is None:
            raise NotAllowed("the token is missing or wrong: send 'Authorization: Bearer TOKEN'")
        return found

    def tenant_of_header(self, header: str | None) -> str:
        """The tenant of the token in an ``Authorization`` header."""
        scheme, _, token = (header or "").partition(" ")
        return self.tenant(token.strip() if scheme.lower() == "bearer" else "")
