"""Look closer on the page: a rectangle drawn on a picture, its cost, and the sharper part in place."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aeic_tools.demo.client import request
from aeic_tools.demo.local_services import Pair
from tests.support.clients.browsing import accessibility_violations, contrast_violations, until
from tests.support.roots import EXAMPLES
from tests.support.services.pair_with_originals import pair_with_originals

pytestmark = pytest.mark.usefixtures("axe")


@pytest.fixture(scope="module")
def pair(browser: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both services; the edge keeps originals."""
    with pair_with_originals(tmp_path_factory.mktemp("closer"), tiny_bundle) as running:
        yield running


def sent(pair: Pair, target_bytes: int = 1000) -> str:
    """The id of a picture of 768x512 that was sent in so many bytes and is decoded."""
    body = (EXAMPLES / "owl.jpg").read_bytes()
    posted = json.loads(request(f"{pair.edge.http}/v1/frames?wait=delivered&target_bytes={target_bytes}", body))
    request(f"{pair.cloud.http}/v1/frames/{posted['id']}/image?wait=20")
    return str(posted["id"])


def opened(page: Any, pair: Pair, frame: str) -> list[str]:
    """The page shows a frame and is ready to ask. Its errors, as they come."""
    errors: list[str] = []
    page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{pair.cloud.http}/#detail={frame}")
    page.wait_for_selector("#closer-ask:enabled", timeout=20000)
    until(page, "document.getElementById('detail-image').naturalWidth > 0")
    return errors


def asked_of(pair: Pair, frame: str, body: dict[str, Any]) -> dict[str, Any]:
    """A request about a frame, after its end."""
    url = f"{pair.cloud.http}/v1/frames/{frame}/requests"
    one = json.loads(request(url, json.dumps(body).encode()))
    return dict(json.loads(request(f"{url}/{one['id']}?wait=30")))


def test_a_rectangle_is_drawn_asked_for_and_seen_in_place(browser: Any, pair: Pair) -> None:
    posted = {"id": sent(pair)}
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    errors = opened(page, pair, posted["id"])
    page.select_option("#closer-bytes", "8000")
    assert page.is_hidden("#closer-history") and page.is_hidden("#closer-composed")
    place = page.locator("#closer-place").bounding_box()
    page.mouse.move(place["x"] + 0.4 * place["width"], place["y"] + 0.2 * place["height"])
    page.mouse.down()
    page.mouse.move(place["x"] + 0.65 * place["width"], place["y"] + 0.45 * place["height"], steps=4)
    page.mouse.up()
    said = page.inner_text("#closer-cost")
    assert re.search(r"19\d × 12\d pixels in the original", said) and "8,000 B" in said and "left this hour" in said
    assert accessibility_violations(page) == []
    page.click("#closer-ask")
    page.wait_for_selector("#closer-place .answer", timeout=30000)
    answer = page.get_attribute(".answer", "data-id")
    frame = json.loads(request(f"{pair.cloud.http}/v1/frames/{answer}"))
    assert frame["parent"] == posted["id"] and frame["kind"] == "region" and abs(frame["region"]["x"] - 307) <= 3
    until(page, "document.getElementById('closer-status').textContent.includes('bytes more')")
    shown = page.locator(".answer").bounding_box()
    assert abs(shown["x"] - place["x"] - 0.4 * place["width"]) < 6
    assert abs(shown["width"] - 0.25 * place["width"]) < 6
    assert re.search(r"At the [\d,.]+ k?B per second of the last answers, that is up to \d", cost_of(page))
    # Two seconds hold for a machine without other work. Elsewhere, only that the answer comes is checked.
    seconds = [_ask_again(page, place) for _ in range(2)]
    assert min(seconds) < 2 or os.getloadavg()[0] > (os.cpu_count() or 1), seconds
    _an_answer_is_labelled(page, pair, frame)
    # A part is not the source's newest picture.
    newest = json.loads(request(f"{pair.cloud.http}/v1/sources?newest=true"))["sources"][0]["newest"]
    assert newest["parent"] is None and newest["id"] != answer
    assert errors == []
    page.close()


def _an_answer_is_labelled(page: Any, pair: Pair, answer: dict[str, Any]) -> None:
    """In the list, and by itself, where it links to its parent and has no time of transfer of its own."""
    page.goto(pair.cloud.http)
    page.wait_for_selector(f"li[data-id='{answer['id']}']:has-text('sharper part of an earlier picture')")
    page.wait_for_selector(f"li[data-id='{answer['parent']}'] img")
    assert "earlier picture" not in page.inner_text(f"li[data-id='{answer['parent']}']")
    until(page, "document.getElementById('totals').innerText.includes('mean frame, last')")
    page.goto(f"{pair.cloud.http}/#detail={answer['parent']}")
    page.wait_for_selector("#detail-stages li:has-text('transfer')")
    assert page.is_visible("#closer")
    page.goto(f"{pair.cloud.http}/#detail={answer['id']}")
    page.wait_for_selector("#facts a:has-text('sharper part of an earlier picture')")
    page.wait_for_selector("#detail-stages li:has-text('synthesis')")
    assert "transfer" not in page.inner_text("#detail-stages") and page.is_hidden("#closer")
    assert "(the earlier picture)" in page.inner_text("#facts")
    page.click("#facts a")
    page.wait_for_selector(f"#facts dd:has-text('{answer['parent']}')")


def cost_of(page: Any) -> str:
    page.wait_for_selector("#closer-ask:enabled", timeout=20000)
    return str(page.inner_text("#closer-cost"))


def _ask_again(page: Any, place: dict[str, float]) -> float:
    """Draws a rectangle on another part and asks for it. The seconds until its answer is seen."""
    page.wait_for_selector("#closer-ask:enabled", timeout=20000)
    page.select_option("#closer-bytes", "1500")
    before = page.locator(".answer").count()
    page.mouse.move(place["x"] + 0.1 * place["width"], place["y"] + 0.6 * place["height"])
    page.mouse.down()
    page.mouse.move(place["x"] + 0.3 * place["width"], place["y"] + 0.9 * place["height"], steps=3)
    page.mouse.up()
    begin = time.monotonic()
    page.click("#closer-ask")
    until(page, "n => document.querySelectorAll('.answer').length > n", before)
    return time.monotonic() - begin


def test_a_rectangle_is_drawn_with_the_keyboard_and_the_history_shows_the_request(browser: Any, pair: Pair) -> None:
    frame = sent(pair)
    sent(pair)  # a neighbour to which the arrow keys of the dialog would go
    refused = asked_of(pair, frame, {"kind": "original", "max_bytes": 99})
    assert refused["reason"] == "over-budget"
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    errors = opened(page, pair, frame)
    page.focus("#closer-place")
    said = lambda: page.text_content("#closer-said")  # noqa: E731
    page.keyboard.press("ArrowRight")
    assert said() == "Rectangle of 256 × 171 pixels at 256, 171. Enter asks for it."
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    assert said() == "Rectangle of 275 × 158 pixels at 237, 158. Enter asks for it."
    for _ in range(60):
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowDown")
    assert said() == "Rectangle of 275 × 354 pixels at 493, 158. Enter asks for it.", "it stays inside"
    page.keyboard.press("Delete")
    assert page.is_hidden("#closer-box") and "whole picture" in said()
    page.keyboard.press("ArrowDown")
    assert page.is_visible("#closer-box") and frame in page.url
    assert accessibility_violations(page) == []
    page.keyboard.press("Enter")
    page.wait_for_selector("#closer-place .answer", timeout=30000)
    answer = page.get_attribute(".answer", "data-id")
    found = json.loads(request(f"{pair.cloud.http}/v1/frames/{answer}"))
    assert found["region"] == {"x": 256, "y": 171, "width": 256, "height": 171}
    page.click("#closer-history summary")
    until(page, "document.querySelectorAll('#closer-rows tr').length === 2")
    rows = [row.inner_text() for row in page.locator("#closer-rows tr").all()]
    assert re.search(r"sharper part\s+256 × 171 pixels at 256, 171\s+[\d,]+ B\s+answered", rows[0])
    assert re.search(r"original\s+whole picture\s+at most 99 B\s+refused: .+ \(over-budget\)", rows[1])
    assert accessibility_violations(page) == [] and contrast_violations(page) == []
    asked_of(pair, frame, {"kind": "better", "max_bytes": 4000})  # elsewhere
    until(page, "document.querySelectorAll('#closer-rows tr').length === 3")
    page.goto(pair.cloud.http)
    page.goto(f"{pair.cloud.http}/#detail={frame}")
    page.wait_for_selector("#closer-ask:enabled", timeout=20000)
    assert page.locator(".answer").count() == 0
    page.locator("#closer-history").evaluate("one => one.open = true")
    page.click("#closer-rows tr:nth-child(2) button")
    page.wait_for_selector(f".answer[data-id='{answer}']", timeout=20000)
    assert "after asking" in page.inner_text("#closer-status")
    page.click("#closer-rows tr:nth-child(1) button")
    until(page, "document.querySelectorAll('.answer').length === 2")
    assert errors == []
    page.close()


def test_a_rectangle_is_drawn_by_touch_and_the_composed_picture_is_marked(browser: Any, pair: Pair) -> None:
    frame = sent(pair)
    context = browser.new_context(viewport={"width": 390, "height": 840}, has_touch=True, is_mobile=True)
    page = context.new_page()
    errors = opened(page, pair, frame)
    touch = context.new_cdp_session(page)
    page.locator("#closer-place").scroll_into_view_if_needed()
    place = page.locator("#closer-place").bounding_box()

    def finger(kind: str, across: float | None = None, down: float = 0.0) -> None:
        points = [] if across is None else [
            {"x": place["x"] + across * place["width"], "y": place["y"] + down * place["height"]}
        ]  # fmt: skip
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touched = "getComputedStyle(document.getElementById('closer-place')).touchAction"
    page.select_option("#closer-kind", "now")
    assert page.evaluate(touched) == "auto", "where nothing can be drawn, a finger scrolls and zooms"
    page.select_option("#closer-kind", "sharper")
    assert page.evaluate(touched) == "none"
    finger("touchStart", 0.25, 0.25)
    for step in range(1, 6):
        finger("touchMove", 0.25 + 0.05 * step, 0.25 + 0.05 * step)
    finger("touchEnd")
    assert re.search(r"19\d × 12\d pixels in the original", page.inner_text("#closer-cost"))
    page.wait_for_timeout(700)  # Chromium drops a tap in the first moment after another gesture; no finger is so quick
    page.tap("#closer-ask")
    page.wait_for_selector("#closer-place .answer", timeout=30000)
    answer = page.get_attribute(".answer", "data-id")
    region = json.loads(request(f"{pair.cloud.http}/v1/frames/{answer}"))["region"]
    assert abs(region["x"] - 192) <= 3 and abs(region["y"] - 128) <= 3
    page.wait_for_selector("#closer-composed:visible", timeout=20000)
    assert page.is_hidden("#closer-mark")
    page.tap("#closer-composed")
    page.wait_for_selector("#closer-place .composed", timeout=30000)
    assert page.evaluate("document.querySelector('.composed').naturalWidth") == 768
    assert page.inner_text("#closer-mark") == "Composed: sharper parts are painted in"
    assert page.get_attribute("#closer-composed", "aria-pressed") == "true"
    assert accessibility_violations(page) == []
    page.locator("#closer-history").evaluate("one => one.open = true")
    whole, seen = page.evaluate(
        "(place => [place.scrollWidth, place.clientWidth])(document.querySelector('#closer-history .scroll'))"
    )
    assert whole <= seen, "the requests fit the width of a phone"
    lines = "cell => cell.offsetHeight / parseFloat(getComputedStyle(cell).lineHeight)"
    heights = page.evaluate(f"[...document.querySelectorAll('#closer-rows td')].map({lines})")
    assert max(heights) < 1.5, "a word is not broken into lines"
    page.tap("#closer-composed")
    assert page.locator(".composed").count() == 0 and page.is_hidden("#closer-mark")
    assert errors == []
    context.close()


def test_the_page_says_why_it_does_not_ask(browser: Any, pair: Pair) -> None:
    """If the hour is spent, or the answer would be no better than the picture."""
    frame = sent(pair, 3000)
    left = {"hour_bytes_left": 1000}
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.route(f"**/v1/frames/{frame}/requests", lambda route: route.fulfill(json=route.fetch().json() | left))
    page.goto(f"{pair.cloud.http}/#detail={frame}")
    page.wait_for_selector("#closer-cost:has-text('are left this hour for this source')", timeout=20000)
    assert page.is_disabled("#closer-ask") and page.is_enabled("#closer-bytes")
    left["hour_bytes_left"] = 60_000
    page.goto(pair.cloud.http)
    page.goto(f"{pair.cloud.http}/#detail={frame}")
    page.wait_for_selector("#closer-cost:has-text('This picture already has')", timeout=20000)
    assert page.is_disabled("#closer-ask")
    page.select_option("#closer-bytes", "4000")
    assert page.is_enabled("#closer-ask")
    page.select_option("#closer-bytes", "1500")
    assert page.is_disabled("#closer-ask")
    page.focus("#closer-place")
    page.keyboard.press("ArrowRight")
    assert page.is_enabled("#closer-ask"), "a part can be sharper"
    page.keyboard.press("Delete")
    assert page.is_disabled("#closer-ask")
    page.close()


def test_the_original_and_a_new_picture_are_asked_for(browser: Any, pair: Pair) -> None:
    posted = {"id": sent(pair)}
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    errors = opened(page, pair, posted["id"])
    page.select_option("#closer-kind", "original")
    assert "The photograph itself" in page.inner_text("#closer-cost")
    page.select_option("#closer-bytes", "16000")
    assert accessibility_violations(page) == []
    page.click("#closer-ask")
    page.wait_for_selector("#closer-place .answer", timeout=30000)
    answer = page.get_attribute(".answer", "data-id")
    frame = json.loads(request(f"{pair.cloud.http}/v1/frames/{answer}"))
    assert (frame["parent"], frame["kind"], frame["media_type"]) == (posted["id"], "original", "image/jpeg")
    assert page.evaluate("document.querySelector('.answer').naturalWidth") == frame["width"]
    until(page, "document.querySelector('#closer-status a') !== null")
    with page.expect_download() as saved:
        page.click("#closer-status a")
    assert saved.value.suggested_filename == f"{answer}.jpg"
    assert Path(saved.value.path()).read_bytes() == request(f"{pair.cloud.http}/v1/frames/{answer}/file")
    page.wait_for_selector("#closer-ask:enabled", timeout=20000)
    page.select_option("#closer-kind", "now")
    assert "takes a new picture" in page.inner_text("#closer-cost")
    page.click("#closer-ask")
    page.wait_for_selector("#closer-status a[href]", timeout=30000)
    until(page, "document.querySelector('#closer-status a').textContent === 'Open the new picture'")
    page.click("#closer-status a")
    until(page, "document.getElementById('detail-image').naturalWidth === 160")
    page.goto(f"{pair.cloud.http}/#detail={answer}")  # a file by itself is shown too
    until(page, f"document.getElementById('detail-image').naturalWidth === {frame['width']}")
    assert errors == []
    page.close()
