"""Takes the pictures of both pages that the documentation shows, as ``make screenshots``.

An edge and a cloud with the shipped model get the photographs of examples/ from a dozen sources; one of them sends the
same view through a day. Every frame is encoded, delivered and decoded as usual. Then the services stop, and the
frames' times are moved into the past, each frame's by one amount, so that the day is a day and the durations stay the
measured ones. The services start again, and a headless Chromium (Debian: chromium) takes the pictures.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import io
import json
import os
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from uuid import uuid4

from PIL import Image, ImageEnhance
from playwright.sync_api import Browser, Page, sync_playwright

from aeic_tools.demo import local_services
from aeic_tools.demo.client import request
from aeic_tools.demo.local_services import Pair
from cloud_decoder.store.store import Store
from tests.support.clients.browsing import CHROMIUM, until
from tests.support.cloud.filled_cloud import DAY, wait_decoded
from tests.support.frames import new_frame
from tests.support.roots import DOCS, EXAMPLES

MINUTE, HOUR = 60, 3600
SOURCES = {
    "barn": ("chelsea.png", 4 * MINUTE),
    "gate-north": ("chickens.jpg", 2 * MINUTE),
    "kitchen": ("coffee.jpg", 9 * MINUTE),
    "mast-3": ("canyon_de_chelly.jpg", 3 * HOUR),
    "mast-7": ("rocket.jpg", 31 * HOUR),
    "nest-box": ("owl.jpg", 3 * MINUTE),
    "orchard": ("flower.jpg", 12 * MINUTE),
    "ridge": ("raccoon.jpg", 6 * MINUTE),
    "temple": ("china.jpg", 25 * MINUTE),
    "box-12": ("qutub_minar.jpg", 7 * MINUTE),
}
"""Photograph and age of the newest frame."""
BOX = "box-12"
BROKEN = "mast-3"
VIEW, VIEW_FILE = "causeway", "mont_saint_michel.webp"
DAWN, DUSK, EVERY = 6.5 * HOUR, 19.5 * HOUR, 30 * MINUTE
IN_VIEW = """[...document.querySelectorAll('#strip li')].filter(one => {
    const box = one.getBoundingClientRect();
    return box.right > 0 && box.left < innerWidth; })"""
"""The stills of the filmstrip that the window shows."""


def view(at: float) -> bytes:
    """The view of the source ``VIEW`` at a time of day in seconds: the light rises and falls, the camera sways."""
    light = 0.35 + 0.65 * (1 - abs(2 * (at - DAWN) / (DUSK - DAWN) - 1)) ** 0.6
    with Image.open(EXAMPLES / VIEW_FILE) as found:
        left = int(at / EVERY) * 37 % 64
        picture = found.convert("RGB").crop((left, 0, left + 960, 576)).resize((640, 384))
    out = io.BytesIO()
    ImageEnhance.Brightness(picture).enhance(light).save(out, "JPEG", quality=92)
    return out.getvalue()


def post(pair: Pair, source: str, body: bytes) -> str:
    """A picture through the edge into the cloud, where it is decoded before the next one comes; the id of its frame."""
    url = f"{pair.edge.http}/v1/frames?preset=1kB&wait=delivered"
    id = str(json.loads(request(url, body, X_Source_Id=source))["id"])
    request(f"{pair.cloud.http}/v1/frames/{id}/image?wait=30")
    return id


def send_all(pair: Pair) -> dict[str, float]:
    """Every source's frames. When each frame is to have been received, by its id."""
    now = time.time()
    yesterday = now - now % DAY - DAY
    times = {}
    for number in range(int((DUSK - DAWN) / EVERY) + 1):
        at = DAWN + EVERY * number
        times[post(pair, VIEW, view(at))] = yesterday + at + 7 * number % 11
    times[post(pair, VIEW, view((DAWN + DUSK) / 2))] = now - 5 * MINUTE
    for name, (file, age) in SOURCES.items():
        times[post(pair, name, (EXAMPLES / file).read_bytes())] = now - age
    wait_decoded(pair.cloud.http)
    return times


def move(store: Path, times: dict[str, float]) -> None:
    """Give the frames their times, and each source the time of its newest one. No cloud may run."""
    with sqlite3.connect(store) as database:
        for id, at in times.items():
            (received,) = database.execute(
                "SELECT received_ms FROM frames WHERE id = ?", [id.replace("-", "")]
            ).fetchone()
            by = int(1000 * at) - received
            columns = ", ".join(f"{name} = {name} + {by}" for name in ("captured_ms", "received_ms", "available_ms"))
            database.execute(f"UPDATE frames SET {columns} WHERE id = ?", [id.replace("-", "")])
        newest = "(SELECT max(received_ms) FROM frames WHERE frames.source = sources.source)"
        database.execute(f"UPDATE sources SET last_seen_ms = coalesce({newest}, last_seen_ms)")
    database.close()


def break_one(store: Path) -> None:
    """A last frame of ``BROKEN`` whose bytes were damaged before they arrived."""
    opened = Store(f"sqlite:///{store}")
    (row,) = opened.frames.page("", 1, source=BROKEN).rows
    data = bytearray(opened.frames.bitstream("", row.id) or b"")
    data[-1] ^= 0xFF
    at = time.time() - SOURCES[BROKEN][1] + 10 * MINUTE
    opened.frames.add([new_frame(bytes(data), uuid4(), source=BROKEN, captured_ms=int(1000 * at))], at)
    opened.close()


@contextmanager
def cameras() -> Iterator[str]:
    """The folder of examples over HTTP: a camera whose snapshots are photographs. Its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """No lines on stderr."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(EXAMPLES)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextmanager
def services(folder: Path, camera: str) -> Iterator[Pair]:
    """Both services with the shipped model: a box with a camera that works, one that does not, and a folder."""
    (folder / "ftp").mkdir(exist_ok=True)
    (folder / "edge.toml").write_text(
        f'[[cameras]]\nname = "yard"\nurl = "{camera}/astronaut.jpg"\nfps = 0.001\n'
        f'[[cameras]]\nname = "quay"\nurl = "{camera}/missing.jpg"\nfps = 0.001\n'
        f'[[folders]]\nname = "ftp"\npath = "{folder}/ftp"\n'
    )
    settings = {
        "AEIC_EDGE_CONFIG": str(folder / "edge.toml"),
        "AEIC_EDGE_SOURCE_ID": BOX,
        "AEIC_EDGE_ORIGINALS_MAX_BYTES": "50000000",
    }
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = int(listening.getsockname()[1])
    with (
        local_services.cloud(folder, folder, AEIC_CLOUD_EDGE_URL=f"http://127.0.0.1:{port}") as cloud,
        local_services.edge(folder, folder, cloud.addresses["grpc"], None, port, **settings) as edge,
    ):
        yield Pair(edge, cloud)


def opened(browser: Browser, address: str, width: int, height: int, scheme: Literal["light", "dark"] = "light") -> Page:
    """A page in English, with times in UTC."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme,
        locale="en-GB", timezone_id="UTC", reduced_motion="reduce",
    )  # fmt: skip
    page = context.new_page()
    page.goto(address)
    return page


def shot(page: Page) -> Image.Image:
    """What the window shows."""
    page.wait_for_timeout(500)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def pictured(page: Page) -> None:
    """Until every picture in the window has come."""
    page.wait_for_selector("#charts svg", timeout=60000)
    until(page, "n => document.querySelectorAll('#wall .shot img').length >= n", len(SOURCES) + 1, seconds=60)
    until(page, "[...document.querySelectorAll('.compare img')].every(one => one.naturalWidth)", seconds=60)


def cloud_page(browser: Browser, http: str) -> Image.Image:
    """The top of the page on a desktop, and on a phone in dark mode beside it."""
    desk, phone = opened(browser, http, 1280, 1280), opened(browser, http, 390, 1280, "dark")
    for page in (desk, phone):
        pictured(page)
    both = Image.new("RGB", (1280 + 30 + 390, 1280), "white")
    both.paste(shot(desk), (0, 0))
    both.paste(shot(phone), (1310, 0))
    return both


def cloud_wall(browser: Browser, http: str) -> Image.Image:
    """The wall and the charts, in dark mode."""
    page = opened(browser, http, 1280, 1000, "dark")
    pictured(page)
    page.evaluate("document.querySelector('#totals').scrollIntoView()")
    return shot(page)


def cloud_day(browser: Browser, http: str) -> Image.Image:
    """A source's day."""
    yesterday = datetime.fromtimestamp(time.time() - DAY, UTC).date().isoformat()
    page = opened(browser, f"{http}/#source={VIEW}&day={yesterday}", 1280, 940)
    page.wait_for_selector("#strip .still[aria-current] img", timeout=60000)
    page.keyboard.press("PageUp")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#day-image:visible")
    until(page, f"({IN_VIEW}).every(one => one.querySelector('img')?.naturalWidth)", seconds=60)
    return shot(page)


def edge_page(browser: Browser, http: str) -> Image.Image:
    """The edge's page after a test picture."""
    page = opened(browser, http, 1100, 1130)
    page.wait_for_selector("#link.good")
    page.click("#send")
    page.wait_for_selector("#steps li:has-text('The cloud has it')", timeout=60000)
    until(page, "document.querySelectorAll('#rows tr').length === 3")
    page.wait_for_timeout(3000)
    return shot(page)


def look_closer(browser: Browser, pair: Pair) -> Image.Image:
    """The dialog with an answer in its place, a second rectangle and the requests."""
    frame = post(pair, "ridge", (EXAMPLES / "raccoon.jpg").read_bytes())
    url = f"{pair.cloud.http}/v1/frames/{frame}"
    for body in (
        {"kind": "original", "max_bytes": 99},
        {"kind": "region", "region": {"x": 334, "y": 214, "width": 382, "height": 356}, "max_bytes": 1500},
    ):
        one = json.loads(request(f"{url}/requests", json.dumps(body).encode()))
        ended = json.loads(request(f"{url}/requests/{one['id']}?wait=30"))
    request(f"{pair.cloud.http}/v1/frames/{ended['answer']}/image?wait=30")
    page = opened(browser, f"{pair.cloud.http}/#detail={frame}", 992, 1000)
    page.wait_for_selector("#closer-ask:enabled", timeout=60000)
    page.click("#closer-history summary")
    page.click("#closer-rows button")
    page.wait_for_selector("#closer-place .answer", timeout=60000)
    page.select_option("#closer-bytes", "4000")
    page.evaluate("document.querySelector('#detail').scrollTo(0, 0)")
    place = page.locator("#closer-place").bounding_box()
    assert place
    page.mouse.move(place["x"] + 0.08 * place["width"], place["y"] + 0.55 * place["height"])
    page.mouse.down()
    page.mouse.move(place["x"] + 0.28 * place["width"], place["y"] + 0.85 * place["height"], steps=4)
    page.mouse.up()
    return shot(page)


def prepare(folder: Path, camera: str) -> None:
    """A store with the frames of :func:`send_all` at their times."""
    store = folder / "cloud" / "store.db"
    with services(folder, camera) as pair:
        times = send_all(pair)
    move(store, times)
    break_one(store)


def take(browser: Browser, pair: Pair) -> Iterator[tuple[str, Image.Image]]:
    """Each picture, by its name under docs/."""
    yield "how-to/cloud-page", cloud_page(browser, pair.cloud.http)
    yield "how-to/cloud-wall", cloud_wall(browser, pair.cloud.http)
    yield "how-to/cloud-day", cloud_day(browser, pair.cloud.http)
    yield "how-to/edge-page", edge_page(browser, pair.edge.http)
    yield "look-closer-page", look_closer(browser, pair)


def run(folder: Path, out: Path) -> None:
    """All pictures, into ``out``. The services keep their data in ``folder``."""
    with cameras() as camera, sync_playwright() as driver:
        if not (folder / "cloud").exists():
            prepare(folder, camera)
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        with services(folder, camera) as pair:
            wait_decoded(pair.cloud.http)
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
            for name, picture in take(browser, pair):
                target = out / f"{name}.webp"
                target.parent.mkdir(parents=True, exist_ok=True)
                picture.save(target, quality=82, method=6)
                print(f"{target}: {picture.width} x {picture.height}, {target.stat().st_size:,} bytes", flush=True)
            browser.close()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Take the pictures of both pages for the documentation.")
    parser.add_argument("--out", type=Path, default=DOCS)
    if CHROMIUM is None:
        print("no chromium (Debian: chromium): `make packages-browser` installs it", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), parser.parse_args().out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
