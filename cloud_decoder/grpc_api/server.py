"""The gRPC server: the services, their health, and reflection, on one port."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from aeic.v1 import decode_pb2_grpc
from aeic.v1 import ingest_pb2_grpc as pb_grpc
from aeic_service.http_server import address_text
from cloud_decoder.auth import Tokens
from cloud_decoder.decode_backend import DecodeBackend
from cloud_decoder.grpc_api.decode import Decode, DecodeStream
from cloud_decoder.grpc_api.ingest import Ingest
from cloud_decoder.settings import Settings

SERVICES = ("aeic.v1.IngestService", "aeic.v1.DecodeService", "aeic.v1.DecodeStreamService")


class GrpcServer:
    """``await start()``, then ``await refuse()`` and ``await stop()``. Create it in a running event loop."""

    def __init__(self, settings: Settings, ingest: Ingest, backend: DecodeBackend, tokens: Tokens) -> None:
        self._settings = settings
        options = [
            ("grpc.max_receive_message_length", settings.max_bitstream_bytes + 65536),
            ("grpc.so_reuseport", int(settings.reuse_port)),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.bdp_probe", 0),  # its pings cost more than a frame's answer
        ]
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=settings.max_streams)
        pb_grpc.add_IngestServiceServicer_to_server(ingest, server)
        pb_grpc.add_DecodeServiceServicer_to_server(Decode(backend, tokens, settings.max_wait_seconds), server)
        many = DecodeStream(backend, tokens, settings.max_wait_seconds)
        decode_pb2_grpc.add_DecodeStreamServiceServicer_to_server(many, server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        self._server = server

    async def start(self) -> str:
        """Listen, report health, and return the address to connect to. ``OSError`` where the port is taken."""
        settings = self._settings
        for name in ("", *SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        address, credentials = address_text(settings.host, settings.grpc_port), _tls(settings)
        try:
            if credentials:
                port = self._server.add_secure_port(address, credentials)
            else:
                port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {address} ({error}): choose another AEIC_CLOUD_GRPC_PORT") from error
        await self._server.start()
        return address_text(settings.host, port)

    async def refuse(self) -> None:
        """Report to health checks that the server is about to stop."""
        await self._health.enter_graceful_shutdown()

    async def stop(self) -> None:
        """Refuse new calls, and give those in progress two seconds."""
        await self._server.stop(2.0)


def _tls(settings: Settings) -> grpc.ServerCredentials | None:
    if settings.grpc_tls_cert is None and settings.grpc_tls_key is None:
        return None
    if settings.grpc_tls_cert is None or settings.grpc_tls_key is None:
        raise ValueError("AEIC_CLOUD_GRPC_TLS_CERT and AEIC_CLOUD_GRPC_TLS_KEY go together: set both or neither")
    pair = (settings.grpc_tls_key.read_bytes(), settings.grpc_tls_cert.read_bytes())
    return grpc.ssl_server_credentials([pair])
