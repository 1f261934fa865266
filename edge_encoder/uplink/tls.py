"""Translates gRPC's connection errors into messages that name the remedy."""

from __future__ import annotations

TLS_FAILED = "tls-failed"
"""The uplink's state when the two sides cannot agree on TLS or trust each other."""

# Parts of the texts of gRPC and BoringSSL, in the order in which they are looked for.
_NAME = ("Hostname Verification Check failed", "is not in peer certificate")
_EXPIRED = ("certificate has expired", "certificate is not yet valid")
_CHAIN = ("CERTIFICATE_VERIFY_FAILED",)
_PLAIN_TEXT = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST")
_REFUSED = ("_ALERT_", "PEER_DID_NOT_RETURN_A_CERTIFICATE")
_HANDSHAKE = ("handshake failed", "verification check failed")


def explain(details: str, *, tls: bool, own_certificate: bool) -> tuple[str, str]:
    """The uplink's state for a connection that failed with these details of gRPC, and what they mean: `unreachable` and
    the details, or `tls-failed` and a sentence before them. `tls` and `own_certificate` are what this edge has set."""

    def has(parts: tuple[str, ...]) -> bool:
        return any(part in details for part in parts)

    if has(_NAME):
        return TLS_FAILED, _before(
            "the cloud's certificate is for another name: use a name that it has in AEIC_EDGE_CLOUD_ADDRESS, or set"
            " AEIC_EDGE_TLS_SERVER_NAME",
            details,
        )
    if has(_EXPIRED):
        return TLS_FAILED, _before(
            "the cloud's certificate is not valid at this time: renew it, or set this machine's clock", details
        )
    if has(_CHAIN):
        return TLS_FAILED, _before(
            "no authority that this edge trusts has signed the cloud's certificate: set AEIC_EDGE_TLS_CA", details
        )
    if has(_PLAIN_TEXT):
        return TLS_FAILED, _before(
            "the cloud does not speak TLS on this port: correct AEIC_EDGE_CLOUD_ADDRESS, or set AEIC_EDGE_TLS=false",
            details,
        )
    if has(_REFUSED):
        return TLS_FAILED, _before(
            "the cloud does not accept this edge's certificate: correct AEIC_EDGE_TLS_CERT and AEIC_EDGE_TLS_KEY",
            details,
        )
    if "Socket closed" in details and not tls:
        return "unreachable", _before(
            "the peer closed the connection; if it speaks TLS, set AEIC_EDGE_TLS=true", details
        )
    if "Socket closed" in details and not own_certificate:
        return "unreachable", _before(
            "the peer closed the connection; if it wants a certificate, set AEIC_EDGE_TLS_CERT and AEIC_EDGE_TLS_KEY",
            details,
        )
    if has(_HANDSHAKE):
        return TLS_FAILED, details
    return "unreachable", details


def _before(meaning: str, details: str) -> str:
    return f"{meaning} ({details})"
