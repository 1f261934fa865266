"""Look closer on the page: a box drawn on a picture, its cost, and the sharper part in place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aeic_tools.demo_client import request
from aeic_tools.local_services import Pair
from tests.support.browsing import accessibility_violations, until
from tests.support.keeping import keeping_pair
from tests.support.roots import EXAMPLES


@pytest.fixture(scope="module")
def keeping(browser: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both services; the edge keeps originals."""
    with keeping_pair(tmp_path_factory.mktemp("closer"), tiny_bundle) as running:
        yield running


@pytest.mark.usefixtures("axe")
def test_a_box_is_drawn_asked_for_and_seen_in_place(browser: Any, keeping: Pair) -> None:
    body = (EXAMPLES / "owl.jpg").read_bytes()
    posted = json.loads(request(f"{keeping.edge.http}/v1/frames?wait=delivered&target_bytes=1000", body))
    json.loads(request(f"{keeping.cloud.http}/v1/frames/{posted['id']}?wait=10"))
    request(f"{keeping.cloud.http}/v1/frames/{posted['id']}/image?wait=20")
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    errors: list[str] = []
    page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{keeping.cloud.http}/#detail={posted['id']}")
    page.wait_for_selector("#closer-ask:enabled", timeout=20000)
    until(page, "document.getElementById('detail-image').naturalWidth > 0")
    page.select_option("#closer-bytes", "8000")
    place = page.locator("#closer-place").bounding_box()
    page.mouse.move(place["x"] + 0.4 * place["width"], place["y"] + 0.2 * place["height"])
    page.mouse.down()
    page.mouse.move(place["x"] + 0.65 * place["width"], place["y"] + 0.45 * place["height"], steps=4)
    page.mouse.up()
    said = page.inner_text("#closer-cost")
    assert re.search(r"19\d × 12\d pixels at the box", said) and "8,000 B" in said and "left this hour" in said
    assert accessibility_violations(page) == []
    page.click("#closer-ask")
    page.wait_for_selector("#closer-place .answer", timeout=30000)
    answer = page.get_attribute(".answer", "data-id")
    frame = json.loads(request(f"{keeping.cloud.http}/v1/frames/{answer}"))
    assert frame["parent"] == posted["id"] and frame["kind"] == "region" and abs(frame["region"]["x"] - 307) <= 3
    until(page, "document.getElementById('closer-status').textContent.includes('bytes more')")
    shown = page.locator(".answer").bounding_box()
    assert abs(shown["x"] - place["x"] - 0.4 * place["width"]) < 6
    assert abs(shown["width"] - 0.25 * place["width"]) < 6
    # A part is not the source's newest picture.
    newest = json.loads(request(f"{keeping.cloud.http}/v1/sources?newest=true"))["sources"][0]["newest"]
    assert newest["parent"] is None and newest["id"] != answer
    assert errors == []
    page.close()


@pytest.mark.usefixtures("axe")
def test_the_original_and_a_new_picture_are_asked_for(browser: Any, keeping: Pair) -> None:
    body = (EXAMPLES / "owl.jpg").read_bytes()
    posted = json.loads(request(f"{keeping.edge.http}/v1/frames?wait=delivered&target_bytes=1000", body))
    request(f"{keeping.cloud.http}/v1/frames/{posted['id']}/image?wait=20")
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    errors: list[str] = []
    page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{keeping.cloud.http}/#detail={posted['id']}")
    page.wait_for_selector("#closer-ask:enabled", timeout=20000)
    page.select_option("#closer-kind", "original")
    assert "The photograph itself" in page.inner_text("#closer-cost")
    page.select_option("#closer-bytes", "16000")
    assert accessibility_violations(page) == []
    page.click("#closer-ask")
    page.wait_for_selector("#closer-place .answer", timeout=30000)
    answer = page.get_attribute(".answer", "data-id")
    frame = json.loads(request(f"{keeping.cloud.http}/v1/frames/{answer}"))
    assert (frame["parent"], frame["kind"], frame["media_type"]) == (posted["id"], "original", "image/jpeg")
    assert page.evaluate("document.querySelector('.answer').naturalWidth") == frame["width"]
    until(page, "document.querySelector('#closer-status a') !== null")
    with page.expect_download() as saved:
        page.click("#closer-status a")
    assert saved.value.suggested_filename == f"{answer}.jpg"
    assert Path(saved.value.path()).read_bytes() == request(f"{keeping.cloud.http}/v1/frames/{answer}/file")
    page.wait_for_selector("#closer-ask:enabled", timeout=20000)
    page.select_option("#closer-kind", "now")
    assert "takes a new picture" in page.inner_text("#closer-cost")
    page.click("#closer-ask")
    page.wait_for_selector("#closer-status a[href]", timeout=30000)
    until(page, "document.querySelector('#closer-status a').textContent === 'Open the new picture'")
    page.click("#closer-status a")
    until(page, "document.getElementById('detail-image').naturalWidth === 160")
    page.goto(f"{keeping.cloud.http}/#detail={answer}")  # a file by itself is shown too
    until(page, f"document.getElementById('detail-image').naturalWidth === {frame['width']}")
    assert errors == []
    page.close()
