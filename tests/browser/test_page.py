"""The page as a person meets it: a picture appears live, the keyboard reaches everything, a phone can read it.

Every test fails on an error in the browser's console, a broken content policy included.
"""

from __future__ import annotations

import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aeic.bundle import Bundle
from aeic_client import Client
from aeic_tools.demo.client import request
from aeic_tools.demo.local_services import Pair
from tests.support.clients.browsing import accessibility_violations, contrast_violations, until
from tests.support.cloud.cloud import CloudThread
from tests.support.frames import frame_maker
from tests.support.roots import EXAMPLES

OpenPage = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, services: Pair) -> Iterator[OpenPage]:
    """Opens the page in a fresh context and waits until it is live. Errors of the console fail the test at its end."""
    contexts, errors = [], []

    def opened(width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(services.cloud.http)
        page.wait_for_selector("#link.live")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []


def post(services: Pair, name: str, source: str) -> str:
    """A picture to the edge; the id of its frame."""
    body = (EXAMPLES / name).read_bytes()
    captured = str(int(1000 * time.time()))
    answer = request(f"{services.edge.http}/v1/frames", body, X_Source_Id=source, X_Captured_At=captured)
    return str(json.loads(answer)["id"])


def available(services: Pair, id: str) -> float:
    """When the picture was decoded, as the cloud says it, in seconds since 1970."""
    from datetime import datetime

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        frame = json.loads(request(f"{services.cloud.http}/v1/frames/{id}?wait=10"))
        if frame["available_at"]:
            return datetime.fromisoformat(frame["available_at"]).timestamp()
        time.sleep(0.02)
    raise TimeoutError(id)


def _seconds_until_seen(page: Any, services: Pair) -> tuple[str, list[float]]:
    """Posts three pictures; the last one's id, and for each the time from its decode until the page shows it."""
    delays = []
    for name in ("owl.jpg", "coffee.jpg", "china.jpg"):
        id = post(services, name, "roof-camera-1")
        shown = page.wait_for_selector(f"li[data-id='{id}'] img", timeout=20000)
        until(page, "image => image.complete && image.naturalWidth > 0", shown)
        delays.append(time.time() - available(services, id))
    print(json.dumps({"bench": "page", "seconds_from_decode_to_seen": [round(one, 3) for one in delays]}))
    return id, delays


@pytest.mark.perf
def test_a_picture_appears_within_a_second_of_its_decode(open_page: OpenPage, services: Pair) -> None:
    assert max(_seconds_until_seen(open_page(), services)[1]) < 1.0


def test_a_picture_appears_by_itself_with_its_sizes_and_stages(open_page: OpenPage, services: Pair) -> None:
    page = open_page()
    id, _ = _seconds_until_seen(page, services)
    # The newest is shown large, with its sizes and stages; the wall and the charts know of it.
    page.click("#show-latest")
    page.wait_for_selector(f"#latest-image[data-id='{id}']")
    page.wait_for_selector("#latest-sizes div:nth-child(3)")
    sizes = page.inner_text("#latest-sizes")
    assert "PNG" in sizes and "JPEG" in sizes and "×" in sizes
    frame = json.loads(request(f"{services.cloud.http}/v1/frames/{id}"))
    assert page.inner_text("#latest-bytes") == f"{frame['bytes']:,}"
    assert f"{frame['bpp']:.4f} bits per pixel" in page.inner_text("#latest-facts")
    until(page, "document.querySelectorAll('#charts rect').length >= 3 * 6")
    assert page.locator("#charts svg[role=img][aria-label*=median]").count() == 8
    page.wait_for_selector("#wall .tile.on:has-text('roof-camera-1') img")
    # The cloud's answers may wait a second for company; until then the frames are in the edge's spool.
    until(page, "document.querySelector('#edge').innerText.includes('nothing in its spool')")


def test_the_drop_zone_and_the_slider(open_page: OpenPage, services: Pair) -> None:
    page = open_page()
    page.wait_for_selector("#size:enabled")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.select_option("#size", "2000")
    handle = page.evaluate_handle(
        """bytes => {
            const given = new DataTransfer();
            given.items.add(new File([new Uint8Array(bytes)], "owl.jpg", { type: "image/jpeg" }));
            return given;
        }""",
        list((EXAMPLES / "owl.jpg").read_bytes()),
    )
    page.dispatch_event("#drop", "dragenter", {"dataTransfer": handle})
    page.dispatch_event("#drop", "drop", {"dataTransfer": handle})
    page.wait_for_selector("#showcase-pictures [data-key=own][aria-pressed=true]", timeout=20000)
    assert any(url.endswith("/v1/encode?target_bytes=2000") for url in asked)
    slider = page.wait_for_selector(".compare input[type=range]", state="attached")
    assert "1 : " in page.inner_text("#try-status") and "bits per pixel" in page.inner_text("#try-status")
    sides = page.evaluate("[...document.querySelectorAll('.compare img')].map(i => [i.naturalWidth, i.naturalHeight])")
    assert sides[0] == [768, 512] and abs(sides[1][0] / sides[1][1] - 1.5) < 0.02
    # Its baselines are made in this browser, with no more bytes than the frame.
    page.wait_for_selector("#showcase-baselines [data-key=jpeg]", timeout=30000)
    page.click("#showcase-baselines [data-key=jpeg]")
    ours, theirs = (int(re.sub(r"\D", "", page.inner_text(f".tag.{side}"))) for side in ("right", "left"))
    assert 0 < theirs <= ours
    slider = page.wait_for_selector(".compare input[type=range]", state="attached")
    slider.focus()
    before = float(slider.input_value())
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert float(slider.input_value()) > before
    page.keyboard.press("Home")
    assert page.evaluate("document.querySelector('.compare').style.getPropertyValue('--at')") == "0%"
    box = slider.bounding_box()
    assert box
    page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
    assert 78 <= float(slider.input_value()) <= 82
    assert re.match(r"(79|80|81) % JPEG", page.get_attribute(".compare input", "aria-valuetext"))


def test_a_file_that_is_no_picture_gets_a_helpful_message(browser: Any, services: Pair) -> None:
    page = browser.new_page()
    page.goto(services.cloud.http)
    page.wait_for_selector("#file:enabled")
    page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"this is no picture"})
    page.wait_for_selector("#try-status.bad")
    assert "JPEG" in page.inner_text("#try-status")
    page.close()


def test_a_deleted_frame_leaves_the_page(browser: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    make_frame = frame_maker(bundle)
    started = CloudThread(bundle, tmp_path, allow_delete="always")
    page = browser.new_page()
    try:
        old, new = (started.put(make_frame(seed), source="mast-1") for seed in (1, 2))
        page.goto(started.cloud.http)
        page.click("#show-latest")
        shown = "id => document.querySelector('#latest-image')?.dataset.id === id"
        until(page, shown, str(new.id))
        until(page, "() => document.querySelectorAll('#list > *').length === 2")
        with Client(started.cloud.http) as cloud:
            cloud.delete(new.id)
        until(page, "() => document.querySelectorAll('#list > *').length === 1")
        until(page, shown, str(old.id))
        with Client(started.cloud.http) as cloud:
            cloud.delete(old.id)
        until(page, "() => document.querySelectorAll('#list > *').length === 0")
        assert not page.get_attribute("#latest-image", "src")
    finally:
        page.close()
        started.stop()


def test_a_frame_that_is_deleted_leaves_the_open_dialog_and_the_open_day(
    browser: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = Bundle.load(tiny_bundle)
    make_frame = frame_maker(bundle)
    started = CloudThread(bundle, tmp_path, allow_delete="always")
    page = browser.new_page()
    try:
        old, new = (started.put(make_frame(seed), source="mast-1") for seed in (1, 2))
        page.goto(f"{started.cloud.http}/#source=mast-1")
        page.wait_for_selector(f"#day-image[data-id='{new.id}']:visible")
        page.wait_for_selector(f"#strip li[data-id='{new.id}'] img")
        with Client(started.cloud.http) as cloud:
            cloud.delete(new.id)
        page.wait_for_selector("#day-none:has-text('has been deleted')")
        assert page.is_hidden("#day-image") and page.locator("#strip li").count() == 2
        page.wait_for_selector(f"#strip li[data-id='{new.id}'] .shot:has-text('deleted')")
        page.click("#day-save-frame")
        until(page, "document.getElementById('day-save-frame').textContent === 'It has been deleted'")
        page.goto(f"{started.cloud.http}/#detail={old.id}")
        until(page, "document.getElementById('detail-image').naturalWidth > 0")
        with Client(started.cloud.http) as cloud:
            cloud.delete(old.id)
        page.wait_for_selector("#detail-none:has-text('has been deleted')")
        assert page.is_hidden("#detail-image") and not page.get_attribute("#detail-image", "src")
    finally:
        page.close()
        started.stop()


def test_what_is_deleted_during_an_interruption_leaves_the_page(
    browser: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    """The page names the last event that it has. Its list of the newest frames alone does not say which are gone."""
    bundle = Bundle.load(tiny_bundle)
    started = CloudThread(bundle, tmp_path, allow_delete="always")
    page = browser.new_page()
    opened: list[str | None] = []
    try:
        first, second = (started.put(frame_maker(bundle)(seed)) for seed in (1, 2))
        with urllib.request.urlopen(f"{started.cloud.http}/v1/events") as stream:
            position = [stream.readline(), stream.readline()][1].decode().removeprefix("id: ").strip()

        def interrupt(route: Any) -> None:
            opened.append(route.request.headers.get("last-event-id"))
            if len(opened) == 1:  # a stream that ends at once
                return route.fulfill(content_type="text/event-stream", body=f"retry: 2000\nid: {position}\n\n")
            with Client(started.cloud.http) as cloud:
                cloud.delete(first.id)
            return route.continue_()

        page.route("**/v1/events", interrupt)
        page.goto(started.cloud.http)
        page.wait_for_selector(f"#list li[data-id='{first.id}']")
        until(page, "() => document.querySelectorAll('#list > *').length === 1")
        assert page.locator(f"#list li[data-id='{second.id}']").count() == 1
        assert opened == [None, position]
    finally:
        page.close()
        started.stop()


def test_by_keyboard_alone(open_page: OpenPage, services: Pair) -> None:
    ids = [post(services, name, "gate") for name in ("rocket.jpg", "flower.jpg")]
    page = open_page()
    for id in ids:
        page.wait_for_selector(f"li[data-id='{id}'] img")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    while not page.evaluate("document.activeElement.className").startswith("tile"):
        page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.className") != "frame":
        page.keyboard.press("Tab")
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert ring == "3px"
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail[open] #detail-sizes div")
    first = page.inner_text("#detail-title")
    page.keyboard.press("ArrowRight")
    until(page, "old => document.getElementById('detail-title').textContent !== old", first)
    page.keyboard.press("Escape")
    assert page.locator("#detail[open]").count() == 0
    assert page.evaluate("document.activeElement.className") == "frame"


@pytest.mark.usefixtures("axe")
@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (390, "dark"), (820, "light"), (1280, "dark")])
def test_it_fits_and_can_be_read(open_page: OpenPage, services: Pair, width: int, scheme: str) -> None:
    id = post(services, "chickens.jpg", "a-source-with-a-very-long-name-that-goes-on-" * 2)
    page = open_page(width, 844, color_scheme=scheme)
    page.wait_for_selector(f"li[data-id='{id}'] img")
    page.wait_for_selector(".compare .after img")
    page.wait_for_selector("#charts svg")
    page.wait_for_selector("#wall .tile")
    _fits(page, width)
    page.goto(
        f"{services.cloud.http}/#source=" + urllib.parse.quote("a-source-with-a-very-long-name-that-goes-on-" * 2)
    )
    page.wait_for_selector(f"#day-image[data-id='{id}']")
    _fits(page, width)


def _fits(page: Any, width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert contrast_violations(page) == [], "text with less than 4.5 : 1 of contrast"
    assert accessibility_violations(page) == []


def test_the_page_needs_no_other_host(open_page: OpenPage, services: Pair) -> None:
    """Offline: nothing but the service itself is asked; and the policy would not allow it."""
    page = open_page()
    asked = page.evaluate("performance.getEntriesByType('resource').map(e => new URL(e.name).origin)")
    assert set(asked) == {services.cloud.http}
    with urllib.request.urlopen(services.cloud.http) as answer:
        policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy


def test_without_an_edge_it_says_so(browser: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    from aeic_tools.demo import local_services

    with local_services.cloud(tmp_path, tmp_path, tiny_bundle, AEIC_CLOUD_TOKENS="a:secret-token-1") as cloud:
        page = browser.new_page()
        page.goto(cloud.http)
        page.wait_for_selector("#login:not([hidden])")
        page.keyboard.type("secret-token-1")  # the field has the focus
        page.keyboard.press("Enter")
        page.wait_for_selector("#link.live")
        page.wait_for_selector("#drop.off")
        assert "AEIC_CLOUD_EDGE_URL" in page.inner_text("#try-status")
        page.wait_for_selector("#empty:has-text('No frames yet')")
        page.wait_for_selector("#wall-empty:has-text('No source')")
        assert page.locator("#file:disabled").count() == 1
        page.close()
