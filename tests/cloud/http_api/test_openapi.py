"""The description of the API is true: answers have the declared form, and a generated client works."""

from __future__ import annotations

import asyncio
import importlib
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import BaseModel

from cloud_decoder.http_api import schemas
from cloud_decoder.inference.decoder import Decoder
from tests.support.clients.generated_client import generate
from tests.support.cloud.cloud import running_cloud
from tests.support.frames import MakeFrame, new_frame

JSON_ROUTES: dict[str, type[BaseModel]] = {
    "/v1/frames": schemas.FrameListBody,
    "/v1/frames/{id}": schemas.FrameBody,
    "/v1/frames/{id}/sizes": schemas.SizesBody,
    "/v1/frames/{id}/requests": schemas.RequestListBody,
    "/v1/sources": schemas.SourceListBody,
    "/v1/status": schemas.StatusBody,
    "/v1/edge": schemas.EdgeBody,
    "/healthz": schemas.HealthBody,
    "/readyz": schemas.HealthBody,
}


async def test_answers_have_the_form_that_is_declared(decoder: Decoder, make_frame: MakeFrame, tmp_path: Path) -> None:
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        new = new_frame(make_frame(1))
        cloud.store.frames.add([new], 1_795_900_000.0)
        cloud.commits.announce([new])
        assert (await http.get(f"/v1/frames/{new.id}/image?wait=20")).headers["content-type"] == "image/png"
        described = (await http.get("/openapi.json")).json()
        for path, model in JSON_ROUTES.items():
            answer = await http.get(path.replace("{id}", str(new.id)))
            assert answer.status_code == 200, path
            model.model_validate_json(answer.content)
            declared = described["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            assert declared == {"$ref": f"#/components/schemas/{model.__name__}"}, path
        late = await http.get(f"/v1/frames/{new.id}/image?format=exe")
        assert late.headers["content-type"] == "application/problem+json"


async def test_nothing_is_described_without_a_form(decoder: Decoder, tmp_path: Path) -> None:
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        described = (await http.get("/openapi.json")).json()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            good = {code: one for code, one in operation["responses"].items() if code.startswith("2")}
            assert good, path
            for code, one in good.items():
                for kind, content in one.get("content", {}).items():
                    assert content["schema"], f"{method} {path} {code} {kind}"
            if method == "post":
                assert operation["requestBody"]["content"], path
            assert path.startswith("/v1/") == ("security" in operation), path


async def test_a_generated_client_lists_fetches_and_decodes(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_cloud(decoder, tmp_path, tokens="a:a-long-token") as cloud:
        async with httpx.AsyncClient(base_url=cloud.http) as http:
            description = (await http.get("/openapi.json")).content
        api = await asyncio.to_thread(generate, description, "generated_api", tmp_path, monkeypatch)
        new = new_frame(make_frame(1), tenant="a")
        cloud.store.frames.add([new], 1_795_900_000.0)
        cloud.commits.announce([new])

        def route(name: str) -> Any:
            return importlib.import_module(f"generated_api.api.{name}")

        stranger = api.Client(base_url=cloud.http)
        refused = await route("frames.list_frames").asyncio_detailed(client=stranger)
        assert refused.status_code == 401 and refused.parsed.type_ == "urn:aeic:not-allowed"

        async with api.AuthenticatedClient(base_url=cloud.http, token="a-long-token") as client:
            image = await route("frames.get_image").asyncio_detailed(new.id, client=client, wait=20.0, format_="webp")
            assert image.status_code == 200 and image.parsed.payload.read()[8:12] == b"WEBP"
            page = await route("frames.list_frames").asyncio(client=client, limit=10)
            assert [one.id for one in page.frames] == [new.id] and page.frames[0].state == "done"
            bitstream = await route("frames.get_bitstream").asyncio_detailed(new.id, client=client)
            assert bitstream.content == new.bitstream
            sources = await route("operations.list_sources").asyncio(client=client)
            assert sources.sources[0].frames == 1
            for _ in range(2):
                deleted = await route("frames.delete_frame").asyncio_detailed(new.id, client=client)
                assert deleted.status_code == 204
            gone = await route("frames.get_image").asyncio(new.id, client=client)
            assert gone.status == 410
            rest = await route("frames.delete_frames").asyncio(client=client, source=new.source)
            assert rest.deleted == 0 and rest.next_ is None
            missing = await route("frames.get_frame").asyncio(uuid4(), client=client)
            assert missing.status == 404 and json.dumps(missing.to_dict())
