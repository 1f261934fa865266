"""The wall of sources, a source's day as a filmstrip, and the comparison at the same bytes, in Chromium."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aeic_tools.demo import local_services
from aeic_tools.demo.client import request
from tests.support.clients.browsing import until
from tests.support.cloud.filled_cloud import NOON, fill, wait_decoded


@pytest.fixture(scope="module")
def filled(browser: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cloud with the frames of three sources, all decoded but for a damaged one."""
    folder = tmp_path_factory.mktemp("wall")
    fill(folder, tiny_bundle, ["mast-0", "mast-1", "mast-2"], 30)
    with local_services.cloud(folder, folder, tiny_bundle) as cloud:
        wait_decoded(cloud.http)
        yield cloud.http


@pytest.fixture
def page(browser: Any, filled: str) -> Iterator[Any]:
    """The page with its console watched: an error there fails the test."""
    context = browser.new_context(timezone_id="UTC", accept_downloads=True)
    errors: list[str] = []
    opened = context.new_page()
    opened.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(filled)
    opened.wait_for_selector("#link.live")
    yield opened
    context.close()
    assert errors == []


def chosen(page: Any) -> str:
    return str(page.evaluate("document.querySelector('#strip [aria-current]')?.parentElement.dataset.id ?? ''"))


def test_the_wall_has_a_tile_for_each_source(page: Any) -> None:
    page.wait_for_selector("#wall li:nth-child(3) img")
    assert page.locator("#wall b").all_inner_texts() == ["mast-0", "mast-1", "mast-2"]
    assert page.locator("#wall .badge:visible").count() == 3
    assert page.locator("#wall .badge").first.inner_text().startswith("silent for ")
    assert "last frame failed" in page.inner_text("#wall li:nth-child(1)")
    page.click("#wall-chips [data-key=failed]")
    assert page.locator("#wall b").all_inner_texts() == ["mast-0"]


def test_the_page_waits_for_no_picture(browser: Any, filled: str) -> None:
    """It paints before any file beside it has come, and has its tiles while no picture comes at all."""
    page = browser.new_page()
    held: list[Any] = []
    page.route("**/viewer/*.js", lambda route: held.append(route))  # neither answered nor refused
    page.goto(filled, wait_until="commit")
    until(page, "performance.getEntriesByName('first-contentful-paint').length === 1")
    assert page.evaluate("getComputedStyle(document.querySelector('header')).display") == "flex"
    page.close()
    page = browser.new_page()
    for pictures in ("**/image?*", "**/viewer/compare/**"):
        page.route(pictures, lambda route: held.append(route))
    page.goto(filled, wait_until="commit")
    page.wait_for_selector("#wall li:nth-child(3)")
    assert page.locator("#wall b").all_inner_texts() == ["mast-0", "mast-1", "mast-2"]
    assert page.locator("#wall img").count() == 0 and len(held) > 3
    page.close()


def test_a_day_as_a_filmstrip_by_keyboard(page: Any) -> None:
    page.wait_for_selector("#wall li:nth-child(3) img")
    page.focus("#wall li:nth-child(2) a")
    page.keyboard.press("Enter")
    page.wait_for_selector("#strip .still[aria-current] img")
    day = datetime.fromtimestamp(NOON, UTC).date().isoformat()
    assert page.locator("#strip li").count() == 30 and page.input_value("#day-date") == day
    assert page.evaluate("document.activeElement.id") == "day-title"
    assert page.locator("#axis-marks path.mark-done").get_attribute("d").count("M") == 30
    last = chosen(page)
    page.keyboard.press("ArrowLeft")
    earlier = chosen(page)
    assert earlier != last and f"frame={earlier}" in page.url
    page.keyboard.press("PageUp")
    page.keyboard.press("Home")
    assert page.evaluate("document.querySelector('#strip li').firstChild.hasAttribute('aria-current')")
    page.wait_for_selector(f"#day-image[data-id='{chosen(page)}']")
    assert "12:00:00" in page.inner_text("#day-time")
    page.focus("#axis-range")
    page.keyboard.press("End")
    assert chosen(page) == last
    page.keyboard.press("Escape")  # in the range, so it stays
    page.focus("#day-title")
    page.keyboard.press("Escape")
    page.wait_for_selector("#wall li:nth-child(3)")


def test_deep_links_filters_and_downloads(page: Any, filled: str) -> None:
    frames = json.loads(request(f"{filled}/v1/frames?source=mast-0&limit=100"))["frames"]
    assert frames[0]["state"] == "failed"
    old = frames[20]
    day = old["received_at"][:10]
    page.goto(f"{filled}/#" + urllib.parse.urlencode({"source": "mast-0", "day": day, "frame": old["id"]}))
    page.wait_for_selector(f"#day-image[data-id='{old['id']}']")
    assert chosen(page) == old["id"] and page.title() == "mast-0 · AEIC cloud"
    with page.expect_download() as saved:
        page.click("#day-save-frame")
    assert Path(saved.value.path()).read_bytes() == request(f"{filled}/v1/frames/{old['id']}/bitstream")
    with page.expect_download() as saved:
        page.click("#day-save-image")
    assert Path(saved.value.path()).read_bytes().startswith(b"\x89PNG")
    page.click("#day-states [data-key=failed]")
    until(page, "document.querySelectorAll('#strip li').length === 1")
    page.wait_for_selector("#day-none:has-text('cannot be decoded')")
    assert page.is_hidden("#day-save-image") and page.is_visible("#day-save-frame")
    assert "state=failed" in page.url
    page.go_back()
    until(page, "document.querySelectorAll('#strip li').length === 31")
    page.click("#day-before")
    page.wait_for_selector("#day-empty:has-text('Nothing arrived')")
    page.goto(f"{filled}/#detail={old['id']}")
    page.wait_for_selector("#detail[open] #detail-sizes div")
    assert "mast-0" in page.inner_text("#detail-title")
    page.keyboard.press("Escape")
    until(page, "!document.getElementById('detail').open && !location.hash.includes('detail')")
    page.goto(f"{filled}/#source=nothing%20%3Cb%3E&day=2026-99-99")  # what an address says is text, and may be wrong
    page.wait_for_selector("#day-empty:not([hidden])")
    assert page.inner_text("#day-title") == "nothing <b>"


def test_the_comparison_zooms_both_pictures_alike(page: Any) -> None:
    page.wait_for_selector(".compare")
    until(page, "[...document.querySelectorAll('.compare img')].every(i => i.complete && i.naturalWidth)")
    assert page.inner_text("#showcase-bytes") == "1,438"
    assert "695,410" in page.inner_text("#showcase-plan")
    for codec in ("webp", "jpeg", "avif"):
        page.click(f"#showcase-baselines [data-key={codec}]")
        until(page, "[...document.querySelectorAll('.compare img')].every(i => i.complete && i.naturalWidth)")
        assert "at full size it needs at least" in page.inner_text("#showcase-note")
    page.click(".tools [aria-label='Zoom in']")
    page.click(".tools [aria-label='Zoom in']")
    moves = "[...document.querySelectorAll('.compare img')].map(i => i.style.transform)"
    left, right = page.evaluate(moves)
    assert left == right and left.endswith("scale(4)")
    box = page.locator(".compare").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.6 * box["height"])
    page.mouse.up()
    panned = page.evaluate(moves)
    assert panned[0] == panned[1] != left
    page.click("#showcase-pictures [data-key=chickens]")
    until(page, "document.querySelector('#showcase-bytes').textContent !== '1,438'")


def test_it_says_when_the_service_is_gone(
    browser: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("gone")
    page = browser.new_page()
    with local_services.cloud(folder, folder, tiny_bundle) as cloud:
        page.goto(cloud.http)
        page.wait_for_selector("#link.live")
    page.wait_for_selector("#notice:has-text('has not answered since')", timeout=20000)
    assert page.inner_text("#link") == "reconnecting"
    page.close()


@pytest.mark.perf
def test_the_first_meaningful_paint_with_50_sources_and_1000_frames(
    browser: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From the navigation until every source has its tile with name and state, within a second."""
    folder = tmp_path_factory.mktemp("many")
    fill(folder, tiny_bundle, [f"mast-{number}" for number in range(50)], 20)
    with local_services.cloud(folder, folder, tiny_bundle) as cloud:
        wait_decoded(cloud.http)
        painted, found, pictured = [], [], []
        for _ in range(3):
            page = browser.new_page()
            page.goto(cloud.http, wait_until="commit")
            until(page, "document.querySelectorAll('#wall li').length === 50")
            found.append(page.evaluate("performance.now()") / 1000)
            painted.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000)
            until(page, "document.querySelector('#wall img')")
            pictured.append(page.evaluate("performance.now()") / 1000)
            page.close()
    seconds = {"first_paint": painted, "first_meaningful_paint": found, "first_picture": pictured}
    print(json.dumps({"bench": "page"} | {name: [round(one, 3) for one in all] for name, all in seconds.items()}))
    assert sorted(found)[1] < 1.0
