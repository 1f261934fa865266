"""The gRPC server: the services, their health, and reflection, on one port."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from aeic.v1 import decode_pb2_grpc
from aeic.v1 import ingest_pb2_grpc as pb_grpc
from aeic_service.http.server import address_text, connection_limit
from cloud_decoder.decode_backend import DecodeBackend
from cloud_decoder.grpc_api.calls import NEWCOMERS, PROBES
from cloud_decoder.grpc_api.decode import Decode, DecodeStream, Gate
from cloud_decoder.grpc_api.ingest import Ingest
from cloud_decoder.grpc_api.tls import TlsFiles
from cloud_decoder.settings import Settings

SERVICES = ("aeic.v1.IngestService", "aeic.v1.DecodeService", "aeic.v1.DecodeStreamService")
STREAMS_OF_A_CONNECTION = 100
"""Calls at once on one connection; an edge needs one. gRPC's clients wait for their turn where they have more."""
LEAST_CONNECTIONS = 8192
"""gRPC does not close an idle connection in favour of a new one, so there are more than calls: idle ones end after five
seconds, and a client has to open this many within that time to keep others out."""
METADATA_BYTES = 8192
"""Headers of one call. Beyond twice as much, the call is refused; what follows of them is read and thrown away."""


class GrpcServer:
    """``await start()``, then ``await report_stopping()`` and ``await stop()``. Create it in a running event loop."""

    def __init__(self, settings: Settings, ingest: Ingest, backend: DecodeBackend, gate: Gate) -> None:
        self._settings = settings
        wanted = settings.max_streams + NEWCOMERS + PROBES
        options = [
            ("grpc.max_concurrent_streams", STREAMS_OF_A_CONNECTION),
            ("grpc.max_allowed_incoming_connections", connection_limit(max(wanted, LEAST_CONNECTIONS))),
            ("grpc.server_handshake_timeout_ms", 5_000),
            ("grpc.max_connection_idle_ms", 5_000),  # connections without a call; clients connect again by themselves
            ("grpc.max_metadata_size", METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES),
            ("grpc.max_receive_message_length", settings.max_bitstream_bytes + 65536),
            ("grpc.so_reuseport", int(settings.reuse_port)),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.bdp_probe", 0),  # its pings cost more than a frame's answer
        ]
        server = grpc.aio.server(interceptors=[gate.calls], options=options)
        pb_grpc.add_IngestServiceServicer_to_server(ingest, server)
        pb_grpc.add_DecodeServiceServicer_to_server(Decode(backend, gate, settings.max_wait_seconds), server)
        many = DecodeStream(backend, gate, settings.max_wait_seconds)
        decode_pb2_grpc.add_DecodeStreamServiceServicer_to_server(many, server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        _add_reflection(server)
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

    async def report_stopping(self) -> None:
        """Report to health checks that the server is about to stop."""
        await self._health.enter_graceful_shutdown()

    async def stop(self) -> None:
        """Refuse new calls, and give those in progress two seconds."""
        await self._server.stop(2.0)


def _add_reflection(server: grpc.aio.Server) -> None:
    """Reflection as v1alpha, which grpcio-reflection has, and as v1, whose messages are the same on the wire."""
    names = [*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(names).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    service = "grpc.reflection.v1.ServerReflection"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": handler}),))


def _tls(settings: Settings) -> grpc.ServerCredentials | None:
    cert, key, client_ca = settings.grpc_tls_cert, settings.grpc_tls_key, settings.grpc_tls_client_ca
    if cert is None and key is None:
        if client_ca is not None:
            raise ValueError("AEIC_CLOUD_GRPC_TLS_CLIENT_CA needs AEIC_CLOUD_GRPC_TLS_CERT and AEIC_CLOUD_GRPC_TLS_KEY")
        return None
    if cert is None or key is None:
        raise ValueError("AEIC_CLOUD_GRPC_TLS_CERT and AEIC_CLOUD_GRPC_TLS_KEY go together: set both or neither")
    return TlsFiles(cert, key, client_ca).credentials()
