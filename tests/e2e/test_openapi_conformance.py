"""Schemathesis finds nothing at either service: each answer has a status, a type and a body that are described.

tests/cloud/hostile.py and tests/edge/abuse.py send more of its requests, and look at what is left of the service.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aeic_tools.demo import local_services
from aeic_tools.demo.client import request
from aeic_tools.demo.local_services import Pair
from tests.support.roots import EXAMPLES

pytest.importorskip("schemathesis", reason="comes with the extra dev: make install")

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,missing_required_header,unsupported_method,allow_header_conformance,ignored_auth"
)
TOKEN = "a-long-token"
CLOUD = {"AEIC_CLOUD_TOKENS": f"a:{TOKEN}", "AEIC_CLOUD_MAX_WAIT_SECONDS": "0.05"}
ENDLESS = "/v1/events"
"""It never ends. tests/cloud/http_api/test_events.py reads it."""


@pytest.fixture(scope="module")
def services(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("conformance")
    with (
        local_services.cloud(folder, folder, tiny_bundle, 0, **CLOUD) as cloud,
        local_services.edge(folder, folder, cloud.addresses["grpc"], tiny_bundle, 0, AEIC_EDGE_TOKEN=TOKEN) as edge,
    ):
        request(f"{edge.http}/v1/frames?wait=delivered", (EXAMPLES / "owl.jpg").read_bytes())
        yield Pair(edge, cloud)


@pytest.mark.parametrize("side", ["edge", "cloud"])
def test_every_answer_is_one_that_is_described(services: Pair, side: str, tmp_path: Path) -> None:
    url = services.edge.http if side == "edge" else services.cloud.http
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", CHECKS,
        "--phases", "examples,coverage,fuzzing", "--max-examples", "5", "--seed", "1", "--exclude-path", ENDLESS,
        "--generation-database", "none", "--request-timeout", "20", "--suppress-health-check", "all",
        "--continue-on-failure", "--warnings", "off", "--header", f"Authorization: Bearer {TOKEN}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
