"""Both services answer the same request alike: the status, the headers and, for a problem, its type and its words.

The requests go over raw sockets, because a client library would correct many of them. Routes that only one service has,
and answers about a picture or a frame, are left out.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.support.services.either import Running, running

ID = "019acb2e-6f5d-7c30-9d0e-3f3a2b1c4d5e"
METHODS = ("OPTIONS", "TRACE", "DELETE", "PATCH", "PUT", "PROPFIND", "get")
ROUTES = ("/v1/status", f"/v1/frames/{ID}", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/nothing")
PATHS = (
    f"/v1/frames/{ID.upper()}", f"/v1/frames/{ID.replace('-', '')}", f"/v1/frames/{{{ID}}}", "/v1/frames/" + "1" * 65,
    f"/v1/frames/{ID}/", f"/v1/frames/{ID}//", f"/v1/frames/{ID}%2F", f"/v1/frames/{ID}%0a", "/v1/frames/%00",
    "/v1/frames/%ff%fe", "/v1/frames/%2e%2e", "/v1%2Fstatus", "/v1/%73tatus", "//v1/status", "/v1//status",
    "/v1/./status", "/V1/status", "/v1/status;x", "/docs/", "/docs?x=1", "/metrics?x=1", "/readyz?x=1", "/v1/status?",
    "/v1/status?&", "/v1/status?=1", "/v1/status?x", "/v1/status?%00=1", "/v1/status?x=1&x=2",
    "/v1/status?" + "a" * 9000, "/health", "/ready", "/metric", "/favicon.txt", "http://x/v1/status",
    "http://evil.example/v1/status", "*",
)  # fmt: skip
HEADERS = (
    "Content-Type: application/json", "Content-Encoding: br", "Expect: 100-continue", "Range: bytes=0-3",
    "Origin: http://evil.example", "Origin:", "Host: y", "Transfer-Encoding: gzip", "Upgrade: websocket", "X : y",
)  # fmt: skip
BODIES = (
    "Content-Length: -1\r\n\r\n", "Content-Length: x\r\n\r\n", "Content-Length: +3\r\n\r\nabc",
    "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "Content-Length: 99999999999999\r\n\r\nabc",
    "Transfer-Encoding: chunked\r\n\r\nzz\r\n", "Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    "Content-Type: MULTIPART/x\r\nContent-Length: 3\r\n\r\nabc",
)  # fmt: skip
MALFORMED = ("GET /v1/status HTTP/2.0\r\nHost: x\r\n\r\n", "GET /v1/status HTTP/1.0\r\n\r\n", "\0\r\n\r\n")
VALUES = ("", "x", "1.5", "1e", "1_0", "+7", "0x1", "nan", "9" * 5000, "%00", "%D9%A1%D9%A1x", "1&{}=2")
SECONDS = ("nan", "inf", "-1", "1e400", "x", "", "86401")

DELETION = ("DELETE", f"/v1/frames/{ID}")
"""Only the cloud has it."""

Answer = tuple[str, dict[str, str], str]


def requests(service: Running) -> dict[str, str]:
    """Each request by its description, which is the same for both services."""
    listing = "POST" if service.name == "edge" else "GET"
    rest = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    lines = [f"{method} {route}" for method in METHODS for route in ROUTES if (method, route) != DELETION]
    lines += [f"{method} {path}" for method in ("GET", "HEAD") for path in (*ROUTES, *PATHS)]
    asked = {line[:120]: f"{line} {rest}\r\n" for line in lines}
    asked |= {header: f"GET /v1/status {rest}{header}\r\n\r\n" for header in HEADERS}
    asked |= {body: f"POST {service.post} {rest}{body}" for body in BODIES}
    for value in VALUES:
        query = f"{service.parameter}={value.format(service.parameter)}"
        asked[f"N={value[:40]}"] = f"{listing} {service.listing}?{query} {rest}\r\n"
    for value in SECONDS:
        asked[f"timeout={value}"] = f"POST {service.post}?timeout={value} {rest}Content-Length: 1\r\n\r\nx"
    return asked | {text: text for text in MALFORMED}


def read(raw: bytes, service: Running) -> Answer:
    """An answer without what must differ: dates, lengths, and the names of the service's own settings."""
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    for name in ("date", "content-length"):
        headers.pop(name, None)
    if "allow" in headers:
        headers["allow"] = headers["allow"].removeprefix("delete, ")
    said = ""
    if headers.get("content-type") == "application/problem+json" and body:
        problem = json.loads(body)
        said = f"{problem['type']} {problem['detail']}".replace(service.parameter, "N")
        said = (
            said.replace("takes DELETE, ", "takes ")
            .replace(f"AEIC_{service.name.upper()}_", "AEIC_X_")
            .replace("MAX_BITSTREAM_BYTES", "MAX_BODY_BYTES")
        )
        if "unknown-frame" in said:
            said = said.partition(" here: ")[0]  # the reason differs
    return status, headers, said


async def test_both_services_answer_alike(tiny_bundle: Path, tmp_path: Path) -> None:
    async def answers(service: Running) -> dict[str, Answer]:
        return {
            name: read(await service.raw(text.encode("latin-1"), seconds=1.0), service)
            for name, text in requests(service).items()
        }

    async with (
        running("edge", tiny_bundle, tmp_path / "edge") as edge,
        running("cloud", tiny_bundle, tmp_path / "cloud") as cloud,
    ):
        at_edge, at_cloud = await asyncio.gather(answers(edge), answers(cloud))
    assert len(at_edge) > 150 and all(status.split()[1] < "500" for status, _, _ in at_edge.values() if status)
    different = {name: (answer, at_cloud[name]) for name, answer in at_edge.items() if answer != at_cloud[name]}
    assert not different, different
