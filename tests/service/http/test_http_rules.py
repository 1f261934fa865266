"""The HTTP rules that both services keep, each tested once and run against both over real sockets."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import pytest

from tests.support.services.either import BODY_BYTES, BODY_SECONDS, Running, running
from tests.support.waiting import until

Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture(params=["edge", "cloud"])
def start(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path: Path) -> Start:
    """Starts one of the services with the given settings changed."""
    return functools.partial(running, request.param, tiny_bundle, tmp_path)


def is_problem(answer: httpx.Response, status: int, kind: str, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail"} and body["status"] == status
    assert body["type"] == f"urn:aeic:{kind}", body
    for word in words:
        assert word in body["detail"], body


async def test_an_unknown_route_names_the_nearest(start: Start) -> None:
    async with start() as service:
        is_problem(await service.http.get("/v1/statu"), 404, "not-found", "did you mean /v1/status?", "/docs")
        is_problem(await service.http.get("/status"), 404, "not-found", "did you mean /v1/status?")
        is_problem(await service.http.get("/v2"), 404, "not-found", "/docs")
        long = (await service.http.get("/" + "x" * 5000)).json()["detail"]
        assert len(long) < 300


async def test_a_wrong_method_names_the_right_ones(start: Start) -> None:
    async with start() as service:
        answer = await service.http.put("/v1/status")
        is_problem(answer, 405, "method-not-allowed", "GET, HEAD")
        assert answer.headers["allow"] == "GET, HEAD"


async def test_a_malformed_parameter_is_400(start: Start) -> None:
    async with start() as service:
        method = "POST" if service.name == "edge" else "GET"
        wrong = await service.http.request(method, f"{service.listing}?{service.parameter}=many")
        is_problem(wrong, 400, "invalid-parameter", service.parameter)
        out_of_range = await service.http.request(method, f"{service.listing}?{service.parameter}=-1")
        is_problem(out_of_range, 400, "invalid-parameter", service.parameter)
        is_problem(await service.http.get("/v1/frames/no-uuid"), 400, "invalid-parameter", "UUID")
        twice = await service.http.request(method, f"{service.listing}?{service.parameter}=1&{service.parameter}=2")
        is_problem(twice, 400, "invalid-parameter", service.parameter, "2 times")


async def test_a_number_is_written_as_in_json(start: Start) -> None:
    """Of the forms that Pydantic takes. ``1.0`` and ``1e1`` are integers, as in a body of JSON."""
    long = "1" + "0" * 5000
    wrong = (
        "NaN",
        "Infinity",
        "-inf",
        "true",
        "1_0",
        "+1",
        " 1 ",
        "01",
        "1.",
        ".5",
        "0x10",
        "\uff11",
        long,
        f"0.{long}",
        "",
    )
    async with start() as service:
        method = "POST" if service.name == "edge" else "GET"

        async def answer(path: str, parameter: str, value: str) -> httpx.Response:
            return await service.http.request(method, path, params={parameter: value})

        for value in (*wrong, "1.5", "1e30", "1e400"):
            is_problem(
                await answer(service.listing, service.parameter, value), 400, "invalid-parameter", service.parameter
            )
        for value in ("1", "1.0", "1e1", "10E-1"):
            assert (await answer(service.listing, service.parameter, value)).status_code in (200, 422), value
        path, seconds = (service.post, "timeout") if service.name == "edge" else (f"/v1/frames/{uuid.uuid4()}", "wait")
        for value in (*wrong, "1e400"):
            is_problem(await answer(path, seconds, value), 400, "invalid-parameter", seconds)
        for value in ("0", "0.0", "1e-3"):
            assert (await answer(path, seconds, value)).status_code in (404, 422), value


async def test_an_unknown_query_parameter_is_refused_with_the_nearest(start: Start) -> None:
    async with start() as service:
        method = "POST" if service.name == "edge" else "GET"
        misspelt = service.parameter[:-1]
        answer = await service.http.request(method, f"{service.listing}?{misspelt}=1")
        is_problem(answer, 400, "unknown-parameter", f"{misspelt!r}", f"did you mean {service.parameter!r}?")
        is_problem(await service.http.get("/v1/status?x=1"), 400, "unknown-parameter", "none")
        assert (await service.http.get("/healthz?from=a-load-balancer")).status_code == 200


async def test_a_body_that_is_too_large(start: Start) -> None:
    async def unstated() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield bytes(1000)

    async with start() as service:
        stated = await service.http.post(service.post, content=bytes(BODY_BYTES + 1))
        is_problem(stated, 413, "body-too-large", str(BODY_BYTES), "AEIC_")
        is_problem(await service.http.post(service.post, content=unstated()), 413, "body-too-large")
        huge = f"POST {service.post} HTTP/1.1\r\nHost: x\r\nContent-Length: {10**30}\r\n\r\n".encode()
        assert (await service.raw(huge, seconds=2)).split(b"\r\n")[0].split()[1] in (b"400", b"413")
        assert (await service.http.get("/healthz")).status_code == 200


async def test_a_body_that_is_too_slow(start: Start) -> None:
    async with start() as service:
        begun = f"POST {service.post} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nabc".encode()
        answer = await service.raw(begun, seconds=BODY_SECONDS + 10)
        assert b" 408 " in answer.split(b"\r\n")[0] and b"urn:aeic:slow-body" in answer
        assert b"connection: close" in answer.lower()


async def test_headers_have_a_deadline(start: Start) -> None:
    async with start() as service:
        silent, begun, second = await asyncio.gather(
            service.raw(b"", seconds=BODY_SECONDS + 10),
            service.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-", seconds=BODY_SECONDS + 10),
            service.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /he", seconds=2),
        )
        assert silent == b"" and b" 408 " in begun.split(b"\r\n")[0]
        assert second.startswith(b"HTTP/1.1 200 ")


async def test_connections_are_limited_and_a_waiting_one_makes_room(start: Start) -> None:
    async with start(max_connections=4) as service:
        held = [await asyncio.open_connection(service.host, service.port) for _ in range(8)]
        for _, writer in held[1:]:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-")  # one is silent, the others stop in the middle
        await asyncio.sleep(0.1)
        assert len(service.server.connections.open) == 4
        answer = await service.http.get("/healthz")
        assert answer.status_code == 200 and len(service.server.connections.open) <= 4
        for _, writer in held:
            writer.close()


async def test_where_all_connections_are_busy_a_new_one_gets_503(start: Start) -> None:
    async with start(max_connections=2) as service:
        begun = f"POST {service.post} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nabc".encode()
        busy = [asyncio.create_task(service.raw(begun, seconds=BODY_SECONDS + 10)) for _ in range(2)]
        await asyncio.sleep(BODY_SECONDS / 3)
        answer = await service.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 503 " in answer.split(b"\r\n")[0] and b"Retry-After" in answer and b"problem+json" in answer
        assert all(b" 408 " in one.split(b"\r\n")[0] for one in await asyncio.gather(*busy))
        assert (await service.http.get("/healthz")).status_code == 200


async def test_head_is_get_without_the_body(start: Start) -> None:
    async with start() as service:
        for path in ("/v1/status", "/healthz", "/docs", "/v1/frames/no-uuid"):
            got, head = await service.http.get(path), await service.http.head(path)
            assert head.status_code == got.status_code and not head.content
            assert head.headers["content-type"] == got.headers["content-type"]


async def test_a_trailing_slash_means_the_same(start: Start) -> None:
    async with start() as service:
        assert (await service.http.get("/v1/status/")).json().keys() == (
            await service.http.get("/v1/status")
        ).json().keys()
        is_problem(await service.http.post(f"{service.post}/", content=b"no file of ours"), 422, _KINDS[service.name])


async def test_foreign_hosts_are_refused(start: Start) -> None:
    async with start(allowed_hosts="good.example, other.example") as service:

        async def status(host: str) -> int:
            return (await service.http.get("/v1/status", headers={"Host": host})).status_code

        answer = await service.http.get("/v1/status", headers={"Host": "evil.example"})
        is_problem(answer, 421, "foreign-host", "evil.example", "ALLOWED_HOSTS")
        for host in ("evil.example:80", "evil.example.", "127.0.0.1.evil.example", "a b", "[::1", "x@y", ""):
            assert await status(host) == (200 if host == "" else 421), host
        for host in (
            "127.0.0.1",
            "[::1]:8080",
            "LOCALHOST:1",
            "cloud",
            "box.local",
            "Good.Example:443",
            "good.example.",
        ):
            assert await status(host) == 200, host


async def test_foreign_origins_are_refused_and_cors_is_off(start: Start) -> None:
    async with start() as service:
        own = f"http://{service.host}:{service.port}"
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", own + ".evil.example"):
            for answer in (
                await service.http.get("/v1/status", headers={"Origin": origin}),
                await service.http.post(service.post, content=b"x", headers={"Origin": origin}),
                await service.http.options(
                    service.post, headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
                ),
            ):
                is_problem(answer, 403, "foreign-origin", "CORS_ORIGINS")
        for headers in ({"Origin": own}, {"Origin": "https://proxied.example", "Sec-Fetch-Site": "same-origin"}):
            answer = await service.http.get("/v1/status", headers=headers)
            assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


async def test_cors_where_it_is_wanted(start: Start) -> None:
    async with start(cors_origins="https://good.example") as service:
        headers = {"Origin": "https://good.example", "Access-Control-Request-Method": "POST"}
        before = await service.http.options(service.post, headers=headers)
        assert before.status_code == 200 and before.headers["access-control-allow-origin"] == "https://good.example"
        answer = await service.http.get("/v1/status", headers={"Origin": "https://good.example"})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://good.example"
        foreign = await service.http.get("/v1/status", headers={"Origin": "https://evil.example"})
        is_problem(foreign, 403, "foreign-origin")


async def test_while_draining_new_work_gets_503(start: Start) -> None:
    async with start() as service:
        await service.drain()
        answer = await service.http.post(service.post, content=service.body)
        is_problem(answer, 503, "draining", "stopping")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await service.http.get("/healthz")).status_code == 200


async def test_an_internal_error_hides_its_words(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async with start() as service:
        service.break_down()
        answer = await service.http.post(service.post, content=service.body)
        is_problem(answer, 500, "internal-server-error", "log")
        assert "secret words" not in answer.text
    assert "secret words" in caplog.text


async def test_what_curl_does_wrong_is_named(start: Start) -> None:
    async with start() as service:
        form = await service.http.post(service.post, files={"file": service.body})
        is_problem(form, 415, "unsupported-body", "--data-binary")
        zipped = await service.http.post(service.post, content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
        is_problem(zipped, 415, "unsupported-body", "gzip")
        stripped = service.body.translate(None, b"\0\r\n")
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await service.http.post(service.post, content=stripped, headers=headers)
        assert answer.status_code in (409, 415, 422) and "--data-binary" in answer.json()["detail"], answer.text
        whole = await service.http.post(service.post, content=service.body, headers=headers)
        assert "--data-binary" not in whole.text


async def test_answers_say_what_they_are(start: Start) -> None:
    async with start() as service:
        for path in ("/v1/status", "/v2", "/docs", "/healthz"):
            answer = await service.http.get(path)
            assert answer.headers.get_list("x-content-type-options") == ["nosniff"], path
            assert "server" not in answer.headers


async def test_what_is_no_http_gets_a_problem(start: Start) -> None:
    async with start() as service:
        for junk in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET\r\n\r\n"):
            answer = await service.raw(junk)
            assert b" 400 " in answer.split(b"\r\n")[0] and b"urn:aeic:bad-request" in answer


async def test_the_description_names_problems_and_not_fastapis_errors(start: Start) -> None:
    async with start() as service:
        described = (await service.http.get("/openapi.json")).json()
        assert "HTTPValidationError" not in json.dumps(described)
        for methods in described["paths"].values():
            for operation in methods.values():
                assert "application/problem+json" in operation["responses"]["default"]["content"]


async def test_it_listens_on_ipv6(start: Start) -> None:
    async with start(host="::1") as service:
        assert str(service.http.base_url) == f"http://[::1]:{service.port}"
        assert (await service.http.get("/healthz")).status_code == 200


async def test_a_client_that_disconnects_while_it_waits_is_counted_as_such(start: Start) -> None:
    async with start() as service:
        _, writer = await asyncio.open_connection(service.host, service.port)
        writer.write(service.waiting)
        await until(service.waits)
        assert service.gone not in (await service.http.get("/metrics")).text
        writer.close()
        await until(lambda: not service.waits())
        assert service.gone in (await service.http.get("/metrics")).text


async def test_times_are_rfc_3339_and_bits_per_pixel_have_six_digits(start: Start) -> None:
    async with start() as service:
        shown = (await service.http.get(await service.store())).json()
        times = {name: value for name, value in shown.items() if name.endswith("_at") and value is not None}
        assert times and all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one) for one in times.values()), (
            shown
        )
        assert shown["bpp"] == round(8 * shown["bytes"] / (shown["width"] * shown["height"]), 6)


_KINDS = {"edge": "unreadable", "cloud": "not-a-bitstream"}
