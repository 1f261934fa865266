"""Waiting for what a page in the browser shows, and whether everyone can read and use it."""

from __future__ import annotations

import shutil
import time
from typing import Any

from tests.support.roots import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = ROOT / ".axe" / "package" / "axe.min.js"
"""The accessibility checker axe-core, which ``make packages-browser`` fetches from the npm registry."""

_CONTRAST = """() => {
    const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(n => n / 255)
        .map(n => n <= .03928 ? n / 12.92 : ((n + .055) / 1.055) ** 2.4);
        return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
    const behind = e => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor;
        if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255,255,255)'; };
    const found = [];
    for (const e of document.querySelectorAll(
            'p, span, b, strong, th, td, dt, dd, h1, h2, h3, small, li, a, button, label')) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (!own || !e.checkVisibility() || e.disabled) continue;
        const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
        if ((a + .05) / (b + .05) < 4.5) found.push(e.textContent + ' ' + (a + .05) / (b + .05));
    }
    return found;
}"""
_UNNAMED = """[...document.querySelectorAll('button, input, select, a, meter, canvas, [role=group]')]
    .filter(e => e.checkVisibility() && !(e.textContent.trim() || e.ariaLabel || e.getAttribute('aria-labelledby')
        || (e.labels && e.labels.length))).map(e => e.outerHTML)"""
_AXE_RUN = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations.map(
    v => v.id + ' (' + v.impact + '): ' + v.nodes.map(n => n.target.join(' ')).slice(0, 4).join(', '))"""


def until(page: Any, script: str, argument: Any = None, seconds: float = 20) -> None:
    """Wait until ``script`` is true. Playwright's wait_for_function evaluates text, which the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(script, argument):
        assert time.monotonic() < deadline, f"never true: {script}"
        page.wait_for_timeout(20)


def contrast_violations(page: Any) -> list[str]:
    """Visible text with less than 4.5 : 1 of contrast to what is behind it."""
    return list(page.evaluate(_CONTRAST))


def accessibility_violations(page: Any) -> list[str]:
    """What axe-core objects to, and controls without a name. A test that asks has the fixture ``axe``."""
    found = [f"no name: {one}" for one in page.evaluate(_UNNAMED)]
    page.evaluate(AXE.read_text())
    return found + list(page.evaluate(_AXE_RUN))
