"""The edge's own page in Chromium: its link and spool, and a test picture on its way to the cloud."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aeic_tools.demo.client import request
from aeic_tools.demo.local_services import Pair
from tests.support.clients.browsing import accessibility_violations, contrast_violations, until
from tests.support.roots import EXAMPLES


@pytest.mark.usefixtures("axe")
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_a_test_picture_is_delivered(browser: Any, services: Pair, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    errors: list[str] = []
    page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(services.edge.http)
    page.wait_for_selector("#link.good:has-text('Connected')")
    page.wait_for_selector("#state.good:has-text('ready')")
    page.wait_for_selector("#no-sources:has-text('No camera')")
    page.click("#send")
    until(page, "document.querySelectorAll('#steps li').length >= 3", seconds=60)
    assert "The cloud has it" in page.inner_text("#steps")
    assert "bytes. It is in the spool." in page.inner_text("#steps")
    card = "document.getElementById('card').toDataURL()"
    before = page.evaluate(card)
    page.set_input_files("#file", str(EXAMPLES / "grace_hopper.jpg"))
    page.wait_for_selector("#card[aria-label='Your photograph']")
    until(page, f"before => {card} !== before", before)
    page.wait_for_selector("#steps li:has-text('512 × 600 pixels')", timeout=60000)
    page.wait_for_selector("#file:enabled", timeout=60000)
    page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"this is no picture"})
    page.wait_for_selector("#steps li.bad:has-text('JPEG')")
    errors = [error for error in errors if "415" not in error and "422" not in error]  # the browser logs the answer
    until(page, "document.getElementById('spool').textContent !== '–'")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert contrast_violations(page) == []
    assert accessibility_violations(page) == []
    assert errors == []
    page.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_no_word_is_broken_or_cut_off(browser: Any, services: Pair, width: int) -> None:
    """Of sources that are down, of what encodes, and the time on the test card where it is written at length."""
    down = {"kind": "camera", "state": "down", "taken": 0, "refused": 0, "last_picture_unix": None}
    details = {"gate": "Connection refused", "ftp": "the folder cannot be read: No such file or directory"}
    status = json.loads(request(f"{services.edge.http}/v1/status"))
    status["sources"] = [down | {"name": name, "detail": detail} for name, detail in details.items()]
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.add_init_script("""
        Date.prototype.toLocaleString = () => "Samstag, 29. November 2026 um 23:19:20 Uhr";
        CanvasRenderingContext2D.prototype.fillText = (text, x, y, most) => (window.widest = most);""")
    page.route("**/v1/status", lambda route: route.fulfill(body=json.dumps(status)))
    page.goto(services.edge.http)
    page.wait_for_selector("#rows tr:nth-child(2)")
    broken = page.evaluate("""() => [...document.querySelectorAll('dd, tbody th, tbody td, small')].flatMap(cell =>
        [...cell.childNodes].filter(node => node.nodeType === 3).flatMap(node =>
            [...node.data.matchAll(/[^\\s-]+/g)].filter(found => {
                const range = new Range();
                range.setStart(node, found.index);
                range.setEnd(node, found.index + found[0].length);
                return range.getClientRects().length > 1;
            }).map(found => found[0])))""")
    assert broken == []
    assert page.evaluate("widest < document.getElementById('card').width")
    assert page.evaluate(
        "document.querySelector('.scrolls').scrollWidth <= document.querySelector('.scrolls').clientWidth"
    )
    page.close()
