"""A client that is generated from the description of the edge's API sends pictures and reads its answers."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from aeic_tools.demo import local_services
from aeic_tools.demo.client import request
from tests.support.clients.generated_client import generate
from tests.support.pictures import picture


def test_a_generated_client_sends_a_picture(tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with local_services.edge(tmp_path, tmp_path, "", tiny_bundle) as edge:
        api = generate(request(f"{edge.http}/openapi.json"), "generated_edge", tmp_path, monkeypatch)
        types = importlib.import_module("generated_edge.types")

        def route(name: str) -> Any:
            return importlib.import_module(f"generated_edge.api.default.{name}")

        with api.Client(base_url=edge.http) as client:
            post = route("post_frame").sync_detailed
            sent = post(client=client, body=types.File(payload=io.BytesIO(picture(100, 70))), priority=3)
            assert sent.status_code == 202 and (sent.parsed.width, sent.parsed.priority) == (100, 3)
            frame = route("get_frame").sync(sent.parsed.id, client=client)
            assert frame.id == sent.parsed.id and frame.bytes_ == sent.parsed.bytes_
            refused = post(client=client, body=types.File(payload=io.BytesIO(b"this is no picture")))
            assert refused.status_code == 422 and refused.parsed.type_ == "urn:aeic:unreadable"
            assert route("get_frame").sync(uuid4(), client=client).status == 404
            assert route("get_status").sync(client=client).spool.frames == 1
