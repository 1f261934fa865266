"""What the page says and keeps where something is missing: the token, the frame of its address, an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from aeic.bundle import Bundle
from aeic_client import Client
from cloud_decoder.store.records import NewFrame
from tests.support.clients.browsing import until
from tests.support.cloud.cloud import CloudThread
from tests.support.frames import frame_maker

TOKEN = "a-long-token"
SOURCE = "mast-1"


@pytest.fixture(scope="module")
def guarded(browser: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudThread]:
    """A cloud that asks for a token. Module scope: it has frames of ``SOURCE``, which no test changes."""
    started = CloudThread(Bundle.load(tiny_bundle), tmp_path_factory.mktemp("guarded"), tokens=f"acme:{TOKEN}")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def frame(guarded: CloudThread, tiny_bundle: Path) -> NewFrame:
    make_frame = frame_maker(Bundle.load(tiny_bundle))
    found = [guarded.put(make_frame(seed), tenant="acme", source=SOURCE) for seed in range(26)]  # the grid shows 24
    with Client(guarded.cloud.http, TOKEN) as cloud:
        cloud.image(found[0].id)
    return found[0]


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """The console is not watched: a browser logs every answer that is an error."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


def log_in(page: Any, token: str) -> None:
    page.wait_for_selector("#login:not([hidden])")
    page.fill("#token", token)
    page.keyboard.press("Enter")


def test_the_address_of_a_frame_survives_the_login(page: Any, guarded: CloudThread, frame: NewFrame) -> None:
    page.goto(f"{guarded.cloud.http}/#source={SOURCE}&detail={frame.id}")
    page.wait_for_selector("#login:not([hidden])")
    page.evaluate("dispatchEvent(new HashChangeEvent('hashchange'))")
    assert page.is_hidden("#overview") and page.is_hidden("#day") and str(frame.id) in page.url
    log_in(page, TOKEN)
    page.wait_for_selector(f"#detail[open] #facts dd:has-text('{frame.id}')")
    assert page.inner_text("#day-title") == SOURCE


@pytest.mark.parametrize("token", ["another-token", "ключ-и-замок"])
def test_a_wrong_token_is_said(page: Any, guarded: CloudThread, token: str) -> None:
    """The second one cannot even be sent: a header has no such letters."""
    page.goto(guarded.cloud.http)
    page.wait_for_selector("#login:not([hidden])")
    assert page.is_hidden("#login-refused")
    log_in(page, token)
    page.wait_for_selector("#login-refused:has-text('did not accept'):visible")
    log_in(page, TOKEN)
    page.wait_for_selector("#link.live")


def test_a_frame_that_does_not_exist_is_said(page: Any, guarded: CloudThread, frame: NewFrame) -> None:
    page.goto(guarded.cloud.http)
    log_in(page, TOKEN)
    page.wait_for_selector("#link.live")
    other = uuid4()
    page.evaluate("id => (location.hash = `source=mast-1&detail=${id}`)", str(other))
    page.wait_for_selector(f"#notice:has-text('There is no frame {other}')")
    assert page.evaluate("location.hash") == f"#source={SOURCE}" and page.is_hidden("#detail")
    page.click("#day-back")
    until(page, "document.getElementById('notice').hidden")


def test_what_the_address_names_comes_once_the_service_answers(
    page: Any, guarded: CloudThread, frame: NewFrame
) -> None:
    page.goto(guarded.cloud.http)
    log_in(page, TOKEN)
    page.wait_for_selector("#link.live")
    page.route("**/v1/**", lambda route: route.abort())
    page.goto(f"{guarded.cloud.http}/?again#source={SOURCE}&detail={frame.id}")
    page.wait_for_selector("#notice:has-text('has not answered since')")
    page.wait_for_selector("#day-count:has-text('did not answer')")
    page.unroute("**/v1/**")
    page.wait_for_selector(f"#detail[open] #facts dd:has-text('{frame.id}')")
    page.wait_for_selector("#strip li:nth-child(26)")


def test_the_newest_of_each_source_is_asked_for_again(page: Any, guarded: CloudThread, frame: NewFrame) -> None:
    """Also where the first request for it is refused while the event stream works."""
    asked: list[str] = []

    def busy(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) <= 2:
            return route.fulfill(status=503, body="{}")
        return route.continue_()

    page.goto(guarded.cloud.http)
    log_in(page, TOKEN)
    page.wait_for_selector("#link.live")
    page.route("**/v1/sources*", busy)
    page.reload()
    page.wait_for_selector("#wall li img", timeout=30000)
    assert all("newest=true" in url for url in asked[:3])


def test_the_last_picture_goes_with_its_words(page: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    started = CloudThread(bundle, tmp_path, allow_delete="always")
    try:
        only = started.put(frame_maker(bundle)(1), source=SOURCE)
        page.goto(started.cloud.http)
        page.click("#show-latest")
        page.wait_for_selector(f"#latest-facts:has-text('{SOURCE}')")
        with Client(started.cloud.http) as cloud:
            cloud.delete(only.id)
        page.wait_for_selector("#latest-facts:has-text('No picture yet')")
        assert page.inner_text("#latest-bytes") == "–" and page.is_hidden("#latest-image")
        assert page.inner_text("#latest-stages") == page.inner_text("#latest-sizes") == ""
    finally:
        started.stop()


def test_the_wall_shows_what_boxes_report(page: Any, guarded: CloudThread) -> None:
    """A box whose cameras send is not silent itself, as in the alert; its dead camera and its backlog are there."""
    now = datetime.now(UTC)
    seen = {
        "first_seen_at": (now - timedelta(days=3)).isoformat(),
        "last_seen_at": (now - timedelta(days=2)).isoformat(),
    }
    known = {"bytes": 0, "waiting": 0, "connected": True, "box": None, "newest": None, **seen}
    report = {"waiting_frames": 7, "oldest_seconds": 60, "problem": "quay cannot be read"}
    found = [
        {"source": "box", "frames": 0, **known, "box": {"software": "aeic-edge 1", "report": report, "warning": ""}},
        {"source": "box/gate", "frames": 3, **known, "last_seen_at": now.isoformat()},
        {"source": "new-box", "frames": 0, **known},
    ]
    twins = {"software": "aeic-edge 1", "report": None, "warning": "two boxes send under this name"}
    found.append({"source": "twins", "frames": 1, **known, "last_seen_at": now.isoformat(), "box": twins})
    page.route("**/v1/sources*", lambda route: route.fulfill(body=json.dumps({"sources": found})))
    page.goto(guarded.cloud.http)
    log_in(page, TOKEN)
    page.wait_for_selector("#wall li:nth-child(4)")
    assert page.locator("#wall .badge:visible").count() == 1
    assert "two boxes send under this name" in page.inner_text("#wall li:nth-child(4)")
    box = page.inner_text("#wall li:nth-child(1)")
    assert "7 at the box" in box and "quay cannot be read" in box and "silent" not in box
    assert "a box with cameras" in box and "no picture yet" in page.inner_text("#wall li:nth-child(3)")
    for kind, names in {"problem": ["box", "twins"], "waiting": ["box"], "silent": ["new-box"]}.items():
        page.click(f"#wall-chips [data-key={kind}]")
        assert page.locator("#wall b").all_inner_texts() == names
    page.goto(f"{guarded.cloud.http}/#source=box")
    page.wait_for_selector("#day-state:has-text('7 at the box; quay cannot be read')")
