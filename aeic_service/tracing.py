"""Optional OpenTelemetry traces, from the POST at the edge to the decoded picture.

Off, and nothing imported, until :func:`set_up`; every call then returns at its first line. A frame's context waits in
memory beside the spool and the queue, since traces may be lost and frames may not: after a restart a frame simply has
no trace. On the wire it is 25 bytes (W3C trace id, span id, flags), sent only while tracing is on.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from aeic.errors import remedy

CONTEXT_BYTES = 25
KEPT = 16384
"""Frames whose context is remembered; the oldest goes first."""

_tracer: Any = None
_kept: OrderedDict[UUID, bytes] = OrderedDict()


def set_up(service: str) -> None:
    """Export to OTEL_EXPORTER_OTLP_ENDPOINT (http://localhost:4318 by default) as ``service``.

    ``ValueError`` where the packages are missing.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ValueError(f"tracing is on, but {error.name} is not installed: {remedy('tracing')}") from None
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)


def use(provider: Any) -> None:
    """Trace through this TracerProvider; None switches tracing off."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("aeic")
    _kept.clear()


def on() -> bool:
    """Whether anything is traced."""
    return _tracer is not None


@contextlib.contextmanager
def request(name: str, traceparent: str | None) -> Iterator[None]:
    """A span round an HTTP request, under the caller's trace where the header ``traceparent`` names one."""
    if _tracer is None:
        yield
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {"traceparent": traceparent} if traceparent else {}
    parent = TraceContextTextMapPropagator().extract(carrier)
    with _tracer.start_as_current_span(name, parent, SpanKind.SERVER):
        yield


def keep_current(frame: UUID) -> None:
    """Remember the span that is open now as the context of ``frame``."""
    if _tracer is not None:
        from opentelemetry import trace

        keep(frame, pack(trace.get_current_span().get_span_context()))


def keep(frame: UUID, context: bytes) -> None:
    """Remember a context as it came over the wire; whatever has not its length is ignored."""
    if _tracer is None or len(context) != CONTEXT_BYTES:
        return
    _kept[frame] = context
    while len(_kept) > KEPT:
        _kept.popitem(last=False)


def kept(frame: UUID) -> bytes:
    """The context of ``frame``; empty if there is none or tracing is off."""
    return _kept.get(frame, b"") if _tracer is not None else b""


def pack(context: Any) -> bytes:
    """An OpenTelemetry SpanContext in 25 bytes."""
    ids = context.trace_id.to_bytes(16, "big") + context.span_id.to_bytes(8, "big")
    return bytes(ids + bytes([context.trace_flags]))


def unpack(data: bytes) -> Any:
    """The SpanContext of 25 bytes."""
    from opentelemetry.trace import SpanContext, TraceFlags

    numbers = int.from_bytes(data[:16], "big"), int.from_bytes(data[16:24], "big")
    return SpanContext(*numbers, is_remote=True, trace_flags=TraceFlags(data[24]))


def span(
    name: str,
    seconds: float,
    *,
    ended: float | None = None,
    under: bytes = b"",
    links: Sequence[bytes] = (),
    attributes: Mapping[str, Any] | None = None,
) -> bytes:
    """A span that lasted ``seconds`` until ``ended`` (monotonic; by default now), reported after it is over.

    ``under``: its parent's context, or the open span. Returns its own context; empty where tracing is off.
    """
    if _tracer is None:
        return b""
    from opentelemetry import trace

    stop = time.time_ns() - int(1e9 * (time.monotonic() - ended if ended is not None else 0.0))
    parent = trace.set_span_in_context(trace.NonRecordingSpan(unpack(under))) if under else None
    made = _tracer.start_span(
        name,
        parent,
        links=[trace.Link(unpack(link)) for link in links if link],
        attributes=dict(attributes or {}),
        start_time=stop - int(1e9 * seconds),
    )
    made.end(stop)
    return pack(made.get_span_context())
