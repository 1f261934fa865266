"""The demo asks services of this machine, whatever proxy the environment names."""

from __future__ import annotations

import pytest

from aeic_tools.demo.client import request
from tests.support.sources.http_camera import http_camera


def test_the_proxy_of_the_environment_is_not_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http_camera() as service:
        assert request(f"{service.url}/snap.jpg").startswith(b"\xff\xd8")
