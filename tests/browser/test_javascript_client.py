"""The JavaScript client of docs/examples in a browser, on a page of another origin that the cloud lets call it."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aeic.bundle import Bundle
from tests.support.cloud.cloud import CloudThread
from tests.support.frames import frame_maker
from tests.support.roots import DOCS

SCRIPT = """async ([url, id]) => {
    const { Cloud, Problem } = await import("/aeic_client.mjs");
    const cloud = new Cloud(url, { token: "a-long-token", retries: 0 });
    const picture = await cloud.image(id, { format: "webp", wait: 20 });
    const found = { type: picture.type, bytes: (await cloud.bitstream(id)).length, frames: [], events: [] };
    for await (const frame of cloud.frames({ source: "box-1" })) found.frames.push(frame.id);
    await cloud.delete(id);
    for await (const event of cloud.events({ lastEventId: "0-0" })) {
        found.events.push(event.event);
        if (event.event === "pruned") break;
    }
    try {
        await cloud.image(id);
    } catch (error) {
        found.problem = [error instanceof Problem, error.status, error.type];
    }
    return found;
}"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """No lines on stderr."""


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[str]:
    """A web server of another origin, with the client and an empty page."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("<!doctype html><title>a page of somewhere else</title>")
    (site / "aeic_client.mjs").write_bytes((DOCS / "examples" / "aeic_client.mjs").read_bytes())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("allowed", [True, False])
def test_a_page_of_another_origin(browser: Any, tiny_bundle: Path, origin: str, tmp_path: Path, allowed: bool) -> None:
    bundle = Bundle.load(tiny_bundle)
    settings = {"tokens": "a:a-long-token", "cors_origins": origin if allowed else ""}
    started = CloudThread(bundle, tmp_path / "cloud", **settings)
    try:
        new = started.put(frame_maker(bundle)(1), tenant="a")
        page = browser.new_page()
        page.goto(origin)
        if not allowed:
            with pytest.raises(Exception, match="Failed to fetch"):
                page.evaluate(SCRIPT, [started.cloud.http, str(new.id)])
            return
        found = page.evaluate(SCRIPT, [started.cloud.http, str(new.id)])
        page.close()
    finally:
        started.stop()
    assert found == {
        "type": "image/webp",
        "bytes": len(new.bitstream),
        "frames": [str(new.id)],
        "events": ["received", "done", "pruned"],
        "problem": [True, 410, "urn:aeic:gone"],
    }
