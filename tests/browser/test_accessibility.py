"""Every view of the cloud's page with axe-core, on a desktop, on a phone and narrower, light and dark.

The sources have the most awkward names that the cloud accepts, so each view also shows that a name stays text.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aeic_tools.demo.client import request
from aeic_tools.demo.local_services import Pair
from tests.support.clients.browsing import accessibility_violations, contrast_violations, until
from tests.support.cloud.filled_cloud import NOON, fill, wait_decoded
from tests.support.roots import EXAMPLES
from tests.support.services.pair_with_originals import pair_with_originals

SCRIPT = "<img src=x onerror=\"document.title='taken'\">&amp;<script>alert(1)</script>"
SOURCES = [SCRIPT, "javascript:alert(1)//#source=x&day=..", "no-space-to-break-a-line-at-" * 4, "../..?%00%2e"]
SIZES = [(1280, "light"), (390, "dark"), (320, "light")]
DATE = datetime.fromtimestamp(NOON, UTC).date().isoformat()

pytestmark = pytest.mark.usefixtures("axe")


@pytest.fixture(scope="module")
def filled(browser: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A cloud with sources that have been silent since yesterday, and an edge that keeps originals."""
    folder = tmp_path_factory.mktemp("accessibility")
    fill(folder, tiny_bundle, SOURCES, 12)
    with pair_with_originals(folder, tiny_bundle) as running:
        wait_decoded(running.cloud.http)
        yield running


@pytest.fixture(scope="module")
def answered(filled: Pair) -> str:
    """The id of a picture that has had one request answered and one refused."""
    posted = json.loads(
        request(f"{filled.edge.http}/v1/frames?wait=delivered&target_bytes=1000", (EXAMPLES / "owl.jpg").read_bytes())
    )
    url = f"{filled.cloud.http}/v1/frames/{posted['id']}"
    request(f"{url}/image?wait=20")
    region = {"x": 100, "y": 100, "width": 200, "height": 150}
    for body in ({"kind": "region", "region": region, "max_bytes": 4000}, {"kind": "original", "max_bytes": 99}):
        one = json.loads(request(f"{url}/requests", json.dumps(body).encode()))
        assert json.loads(request(f"{url}/requests/{one['id']}?wait=30"))["state"] != "open"
    return str(posted["id"])


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}-{size[1]}")
def page(request: pytest.FixtureRequest, browser: Any, filled: Pair) -> Iterator[Any]:
    """The page in one of the sizes, live. An error in its console or a name that became markup fails the test."""
    width, scheme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, timezone_id="UTC", has_touch=width < 1000
    )
    errors: list[str] = []
    opened = context.new_page()
    opened.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("dialog", lambda dialog: errors.append(f"a name ran as a script: {dialog.message}"))
    opened.goto(filled.cloud.http)
    opened.wait_for_selector("#link.live")
    yield opened
    assert opened.title() != "taken" and opened.locator("img[src=x]").count() == 0
    context.close()
    assert errors == []


def good(page: Any) -> None:
    """It fits into the window, can be read, and axe-core finds nothing."""
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("(d => d.scrollWidth - d.clientWidth)(document.getElementById('detail'))") <= 0
    assert contrast_violations(page) == []
    assert accessibility_violations(page) == []


def at(filled: Pair, **address: str) -> str:
    return f"{filled.cloud.http}/#{urllib.parse.urlencode(address)}"


def test_the_comparison_the_wall_and_the_latest(page: Any) -> None:
    page.wait_for_selector("#wall li:nth-child(4) img")
    page.wait_for_selector("#charts svg")
    page.wait_for_selector("#list img")
    until(page, "[...document.querySelectorAll('.compare img')].every(i => i.complete && i.naturalWidth)")
    names = page.locator("#wall b").all_inner_texts()
    assert set(SOURCES) <= set(names) and page.locator("#wall .badge:visible").count() == len(SOURCES)
    for baseline in ("jpeg", "avif", "original"):
        page.click(f"#showcase-baselines [data-key={baseline}]")
        until(page, "[...document.querySelectorAll('.compare img')].every(i => i.complete && i.naturalWidth)")
    good(page)
    page.click("#wall-chips [data-key=failed]")
    assert page.locator("#wall b").all_inner_texts() == [SCRIPT]
    page.click("#show-latest")
    page.wait_for_selector("#latest-sizes div:nth-child(3)")
    good(page)


def test_the_filmstrip(page: Any, filled: Pair) -> None:
    page.wait_for_selector(f"#wall li:has-text('{SOURCES[1]}') a")
    page.click(f"#wall li:has-text('{SOURCES[1]}') a")
    page.wait_for_selector("#strip .still[aria-current] img")
    page.wait_for_selector("#day-image[data-id]:visible")
    assert page.inner_text("#day-title") == SOURCES[1] and page.locator("#strip li").count() == 12
    good(page)
    page.goto(at(filled, source=SCRIPT, day=DATE, state="failed"))
    page.wait_for_selector("#day-none:has-text('cannot be decoded')")
    assert page.inner_text("#day-title") == SCRIPT
    good(page)
    page.goto(at(filled, source=SOURCES[2], day="2020-02-30"))  # no day: the newest one is shown
    page.wait_for_selector("#day-title:has-text('no-space')")
    page.wait_for_selector("#day-count:has-text('12 frames')")
    page.goto(at(filled, source=SOURCES[2], day="2020-02-29"))
    page.wait_for_selector("#day-count:has-text('0 frames')")
    good(page)


def test_the_dialog_with_a_rectangle_and_its_requests(page: Any, filled: Pair, answered: str) -> None:
    page.goto(at(filled, detail=answered))
    page.wait_for_selector("#closer-ask:enabled")
    page.wait_for_selector("#detail-sizes div:nth-child(3)")
    good(page)
    page.focus("#closer-place")
    page.keyboard.press("ArrowRight")
    page.click("#closer-history summary")
    page.click("#closer-rows button")
    page.wait_for_selector("#closer-place .answer")
    good(page)
    page.click("#closer-composed")
    page.wait_for_selector("#closer-place .composed")
    good(page)
    frames = json.loads(request(f"{filled.cloud.http}/v1/frames?state=failed"))["frames"]
    page.goto(at(filled, detail=frames[0]["id"]))
    page.wait_for_selector("#detail-none:has-text('cannot be decoded')")
    assert page.is_hidden("#save-image") and page.is_visible("#save-frame")
    assert SCRIPT in page.inner_text("#detail-title")
    good(page)


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_the_login_and_the_notice(browser: Any, filled: Pair, width: int, scheme: str) -> None:
    """Their console is not watched: a browser logs an answer of 401 and a lost connection."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.route("**/v1/events*", lambda route: route.fulfill(status=401, body="{}"))
    page.goto(filled.cloud.http)
    page.wait_for_selector("#login:not([hidden])")
    good(page)
    page.close()
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.route("**/v1/events*", lambda route: route.abort())
    page.goto(filled.cloud.http)
    page.wait_for_selector("#notice:has-text('has not answered since')")
    page.wait_for_selector("#wall li:nth-child(4) img")
    good(page)
    page.close()
