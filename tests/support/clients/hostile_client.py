"""What a hostile client sends to the cloud, and what must not come back; tests/cloud/hostile.py runs it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import grpc
import httpx

from aeic.v1 import decode_pb2 as many
from aeic.v1 import decode_pb2_grpc as many_grpc
from aeic.v1 import ingest_pb2 as pb
from aeic.v1 import ingest_pb2_grpc as pb_grpc
from tests.aeic.bitstream import fuzz_bitstream

THREADS = 4
SHARES = {"schema": 0.35, "bitstreams": 0.2, "grpc": 0.2, "paths": 0.09, "tenants": 0.08, "wire": 0.08}
BUGS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE}
SECRET = "secret-camera"
HEADERS: list[dict[str, str]] = [{"Authorization": "Bearer token-of-other"}, {"Authorization": "Bearer wrong"}, {}]


class Findings:
    """What came back, and what must not have."""

    def __init__(self, secrets: list[bytes]) -> None:
        self.secrets = secrets
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []

    def http(self, kind: str, what: str, status: int, body: bytes, *, own_deadline: bool = False) -> None:
        """Judge one answer."""
        self.answers[f"{kind} {status}"] += 1
        if status >= 500 and not (status == 504 and own_deadline):
            self.wrong.append(f"{kind}: {status} for {what[:200]!r}: {body[:200]!r}")
        self.leak(kind, what, body)

    def grpc(self, kind: str, what: str, code: grpc.StatusCode, said: bytes) -> None:
        """Judge one answer."""
        self.answers[f"{kind} {code.name}"] += 1
        if code in BUGS:
            self.wrong.append(f"{kind}: {code} for {what[:200]!r}: {said[:200]!r}")
        self.leak(kind, what, said)

    def leak(self, kind: str, what: str, body: bytes) -> None:
        """Whether anything of the other tenant is in ``body``."""
        if any(secret in body for secret in self.secrets):
            self.wrong.append(f"{kind}: the other tenant's in the answer to {what[:200]!r}")


class HostileClient:
    """Attacks of each kind, ``count`` at a time, from threads."""

    def __init__(
        self, http: str, grpc_address: str, good: list[bytes], others: list[UUID], findings: Findings, seed: int
    ) -> None:
        self.address, self.grpc_address = http, grpc_address
        self.good, self.others, self.findings, self.seed = good, others, findings, seed
        self.host, port = http.removeprefix("http://").split(":")
        self.port = int(port)

    def schema(self, count: int) -> None:
        """What Schemathesis makes of the service's own description."""
        import schemathesis
        from hypothesis import HealthCheck, Phase, given, seed, settings
        from hypothesis.errors import Unsatisfiable
        from schemathesis import GenerationMode

        described = httpx.get(f"{self.address}/openapi.json").json()
        described["paths"].pop("/v1/events", None)  # it never ends; wire() opens it and leaves
        found: list[Any] = list(schemathesis.openapi.from_dict(described).get_all_operations())
        operations = [one.ok() for one in found]
        modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        jobs = [(operation, mode) for operation in operations for mode in modes]
        each, turns = -(-count // len(jobs)), itertools.count()

        def attack(job: tuple[Any, Any]) -> None:
            operation, mode = job
            with httpx.Client(base_url=self.address, timeout=30) as client:

                @seed(self.seed)
                @settings(
                    max_examples=each, deadline=None, database=None, phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                @given(case=operation.as_strategy(generation_mode=mode))
                def send(case: Any) -> None:
                    sent = case.as_transport_kwargs(base_url=self.address)
                    query: list[tuple[str, str | int | float | bool | None]] = [
                        (key, "0.02" if key == "wait" and _number(value) else value)
                        for key, value in _pairs(sent.get("params"))
                    ]
                    body = sent.get("data") or sent.get("json") or b""
                    content = body if isinstance(body, bytes | str) else json.dumps(body, default=str)
                    headers = HEADERS[max(0, next(turns) % 10 - 7)]
                    own = any(key == "timeout" for key, _ in query)
                    what = f"{case.method} {sent['url']} {query}"
                    try:
                        answer = client.request(
                            case.method, sent["url"], params=query, content=content, headers=headers
                        )
                    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError, TypeError, ValueError):
                        self.findings.answers["schema not-sendable"] += 1
                        return
                    except httpx.RemoteProtocolError:
                        self.findings.answers["schema closed"] += 1
                        return
                    self.findings.http("schema", what, answer.status_code, answer.content, own_deadline=own)

                with contextlib.suppress(Unsatisfiable):  # what takes nothing can be asked for nothing wrong
                    send()

        for job in jobs:  # not on threads: Hypothesis' look into its own source is not safe there
            attack(job)

    def bitstreams(self, count: int) -> None:
        """Damaged frames to POST /v1/decode."""

        def attack(numbers: list[int]) -> None:
            with httpx.Client(base_url=self.address, timeout=30) as client:
                for number in numbers:
                    data, query = self._damaged(number), f"?format={random.choice(['png', 'webp', 'exe', 'avif'])}"
                    answer = client.post("/v1/decode" + query, content=data, headers=HEADERS[0])
                    self.findings.http("bitstreams", data.hex(), answer.status_code, answer.content)

        _everywhere(attack, _split(count))

    def grpc(self, count: int) -> None:
        """Damaged frames to both decoding services, and to Deliver."""
        asyncio.run(self._grpc(count))

    async def _grpc(self, count: int) -> None:
        good = (("authorization", "Bearer token-of-other"),)
        async with grpc.aio.insecure_channel(self.grpc_address) as channel:
            one, stream = pb_grpc.DecodeServiceStub(channel), many_grpc.DecodeStreamServiceStub(channel)
            room = asyncio.Semaphore(8)

            async def call(number: int) -> None:
                data = self._damaged(number)
                metadata = good if number % 5 else (("authorization", "Bearer " + "x" * (number % 4000)),)
                async with room:
                    try:
                        await one.Decode(pb.DecodeRequest(bitstream=data, format=""), metadata=metadata, timeout=30)
                        self.findings.grpc("grpc", data.hex(), grpc.StatusCode.OK, b"")
                    except grpc.aio.AioRpcError as error:
                        self.findings.grpc("grpc", data.hex(), error.code(), (error.details() or "").encode())

            third = count // 3
            await asyncio.gather(*(call(number) for number in range(third)))
            chance = random.Random(self.seed)
            requests = [
                many.DecodeManyRequest(
                    tag=number,
                    bitstream=self._damaged(number),
                    format=chance.choice(["", "png", "../png", "\0"]),
                    width=chance.choice([0, 16, 1, 2**32 - 1]),
                )
                for number in range(third)
            ]
            answered = 0
            async for answer in stream.DecodeMany(iter(requests), metadata=good):
                code = next(c for c in grpc.StatusCode if c.value[0] == answer.failure.code)
                self.findings.grpc("grpc-stream", str(answer.tag), code, answer.failure.reason.encode())
                answered += 1
            if answered != third:
                self.findings.wrong.append(f"grpc-stream: {answered} answers to {third} frames")
            for number in range(count - 2 * third):
                await self._deliver(channel, number)

    async def _deliver(self, channel: Any, number: int) -> None:
        chance = random.Random(self.seed * 7919 + number)
        hello = pb.Hello(
            source_id=chance.choice(["box", "", "x" * 300, "\0\n", SECRET]),
            bundle_digest=chance.randbytes(chance.choice([0, 5, 32])),
            token=chance.choice(["token-of-other", "wrong", "", "t" * 5000]),
        )
        frame = pb.Frame(id=chance.randbytes(chance.choice([0, 16, 40])), bitstream=self._damaged(number), crc32=number)
        messages = [pb.DeliverRequest(hello=hello), pb.DeliverRequest(frame=frame), pb.DeliverRequest()]
        chance.shuffle(messages)
        call: Any = pb_grpc.IngestServiceStub(channel).Deliver(iter(messages), timeout=10)
        try:
            async for answer in call:
                self.findings.leak("deliver", str(number), answer.SerializeToString())
            code, said = grpc.StatusCode.OK, ""
        except grpc.aio.AioRpcError as error:
            code, said = error.code(), error.details() or ""
        if code is grpc.StatusCode.INTERNAL and "from Core" in said:
            code = grpc.StatusCode.ABORTED  # our own write met the closed stream: no word of the service's
        self.findings.grpc("deliver", str(number), code, said.encode())

    def paths(self, count: int) -> None:
        """Ids and files that climb, as raw request lines: no client straightens them."""
        tricks = [
            "..%2f..%2f..%2fetc%2fpasswd", "../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd",
            "....//....//etc/passwd",
            "%00", "%c0%ae%c0%ae/", "\\..\\..\\", "file:///etc/passwd", "~root", "%25252e%25252e", "*", "$(id)",
            "0198c0de-0000-7000-8000-000000000000/../../..", "' OR 1=1 --", "{{7*7}}", "%ff%fe", "con", "a" * 3000,
        ]  # fmt: skip
        places = [
            "/v1/frames/{}", "/v1/frames/{}/image", "/v1/frames/{}/bitstream", "/viewer/{}", "/{}", "//{}",
            "/v1/frames?cursor={}", "/v1/frames?source={}", "/v1/frames?state={}", "/v1/{}/../status",
        ]  # fmt: skip

        def attack(numbers: list[int]) -> None:
            for number in numbers:
                chance = random.Random(self.seed * 31 + number)
                path = chance.choice(places).format(chance.choice(tricks).replace(" ", "%20"))
                token = "Authorization: Bearer token-of-other\r\n" if chance.random() < 0.8 else ""
                self._raw("paths", f"GET {path} HTTP/1.1\r\nHost: x\r\n{token}Connection: close\r\n\r\n".encode())

        _everywhere(attack, _split(count))

    def tenants(self, count: int) -> None:
        """The other tenant's ids, everywhere an id can stand."""
        tails = ["", "/image", "/bitstream", "/image?wait=0.01", "?wait=0.01", "/image?format=webp&width=32"]

        def attack(numbers: list[int]) -> None:
            with httpx.Client(base_url=self.address, timeout=30) as client:
                for number in numbers:
                    id, headers = self.others[number % len(self.others)], HEADERS[number % 3]
                    path = f"/v1/frames/{id}{tails[number % len(tails)]}"
                    if number % 17 == 0:
                        path = f"/v1/frames?source={SECRET}"
                    answer = client.get(path, headers=headers | {"If-None-Match": "*"})
                    self.findings.http("tenants", path, answer.status_code, answer.content)
                    if answer.status_code in (200, 304) and "?source" not in path:
                        self.findings.wrong.append(f"tenants: {answer.status_code} for {path}")

        _everywhere(attack, _split(count))

    def wire(self, count: int) -> None:
        """What is hardly HTTP: huge and odd headers, bodies that lie, requests that stop in the middle."""
        post = "POST /v1/decode HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-of-other\r\n"
        get = "GET /v1/status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-of-other\r\n"
        kinds: list[Callable[[random.Random], bytes]] = [
            lambda c: (get + "X-Long: " + "x" * c.choice([9_000, 70_000, 900_000]) + "\r\n\r\n").encode(),
            lambda c: (get + "".join(f"X-{n}: {n}\r\n" for n in range(c.choice([90, 3000]))) + "\r\n").encode(),
            lambda c: f"GET /{'x' * c.choice([10_000, 200_000])} HTTP/1.1\r\n\r\n".encode(),
            lambda c: (get + f"Authorization: Bearer {'t' * 8000}\r\n\r\n").encode(),
            lambda c: (post + f"Content-Length: {c.choice([2**63, 10**30, 5_000_000])}\r\n\r\nabc").encode(),
            lambda c: (post + "Content-Length: -1\r\n\r\n").encode(),
            lambda c: (post + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc").encode(),
            lambda c: (post + "Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n").encode() + c.randbytes(2000),
            lambda c: (post + "Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n").encode() + c.randbytes(20),
            lambda c: b"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-of-other\r\n\r\n",
            lambda c: (get + "Range: bytes=0-,1-,2-\r\nIf-None-Match: " + "\x01\xff" * 20 + "\r\n\r\n").encode(
                "latin1"
            ),
            lambda c: c.randbytes(c.choice([1, 100, 5000])),
            lambda c: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            lambda c: (c.choice(["TRACE", "CONNECT", "PUT", "DELETE", "X" * 500]) + get[3:] + "\r\n").encode(),
        ]

        def attack(numbers: list[int]) -> None:
            for number in numbers:
                chance = random.Random(self.seed * 17 + number)
                self._raw("wire", kinds[number % len(kinds)](chance))

        _everywhere(attack, _split(count))

    def _damaged(self, number: int) -> bytes:
        chance = random.Random(self.seed * 1009 + number)
        data = self.good[number % len(self.good)]
        damages, weights = zip(*fuzz_bitstream.DAMAGES, strict=True)
        return bytes(chance.choices(damages, weights)[0](chance, data))

    def _raw(self, kind: str, request: bytes) -> None:
        """Send bytes, read what comes for a moment, and leave."""
        with socket.create_connection((self.host, self.port), timeout=10) as line:
            try:
                line.sendall(request)
                line.settimeout(0.3)
                answer = line.recv(65536)
            except TimeoutError:
                self.findings.answers[f"{kind} waiting"] += 1
                return
            except OSError:
                answer = b""
        head = answer.split(b"\r\n")[0].split()
        if len(head) < 2 or not head[1].isdigit():
            self.findings.answers[f"{kind} closed"] += 1
            return
        self.findings.http(kind, request[:200].decode("latin1"), int(head[1]), answer)
        if b"root:" in answer:
            self.findings.wrong.append(f"{kind}: a file of the machine for {request[:100]!r}")


def _everywhere(attack: Callable[[Any], None], jobs: list[Any]) -> None:
    with ThreadPoolExecutor(THREADS) as threads:
        for done in [threads.submit(attack, job) for job in jobs]:
            done.result()


def _split(count: int) -> list[list[int]]:
    return [list(range(start, count, THREADS)) for start in range(THREADS)]


def _pairs(params: Any) -> Iterator[tuple[str, str]]:
    for key, value in dict(params or {}).items():
        for one in value if isinstance(value, list) else [value]:
            yield str(key), one if isinstance(one, str) else json.dumps(one, default=str)


def _number(text: str) -> bool:
    try:
        return float(text) > 0.02
    except ValueError:
        return False
