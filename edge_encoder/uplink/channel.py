"""The gRPC channel to the cloud: TLS, keepalive and no hidden connection shared with an earlier one."""

from __future__ import annotations

from pathlib import Path

import grpc

from edge_encoder.settings import EdgeSettings


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def open_channel(settings: EdgeSettings) -> grpc.aio.Channel:
    """A new channel; nothing is connected before the first call. OSError when a certificate cannot be read."""
    options: list[tuple[str, int | str]] = [
        ("grpc.keepalive_time_ms", int(settings.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # By default C-core stops after two pings without data; a half-open NAT connection is detected by later ones.
        ("grpc.http2.max_pings_without_data", 0),
        # Each attempt opens a fresh connection; uplink.py sets the pauses between attempts, not gRPC.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.max_receive_message_length", 64 << 10),
        # These pings only serve to enlarge HTTP/2 windows, which are large enough here; each costs 17 bytes each way.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.primary_user_agent", "aeic-edge"),
    ]
    if settings.cloud_is_loopback or settings.proxy == "none":
        options.append(("grpc.enable_http_proxy", 0))
    elif settings.proxy != "environment":
        options.append(("grpc.http_proxy", settings.proxy))
    if not settings.tls:
        return grpc.aio.insecure_channel(settings.cloud_address, options=options)
    if settings.tls_server_name:
        options.append(("grpc.ssl_target_name_override", settings.tls_server_name))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(settings.tls_ca),
        private_key=_read(settings.tls_key),
        certificate_chain=_read(settings.tls_cert),
    )
    return grpc.aio.secure_channel(settings.cloud_address, credentials, options=options)
