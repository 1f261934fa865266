"""docs/notebooks/look_inside.ipynb runs from the first cell to the last, and its page shows the same cells."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

from tests.support.roots import ROOT

FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOK = FOLDER / "look_inside.ipynb"
PAGE = FOLDER / "look_inside.md"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    pytest.importorskip("nbclient")
    return runpy.run_path(str(FOLDER / "run.py"))


@pytest.fixture(scope="module")
def executed(script: dict[str, Any]) -> Any:
    return script["execute"]()


def printed(executed: Any) -> str:
    streams = [
        output for cell in executed.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    ]
    assert all(stream.name == "stdout" for stream in streams), [s.text for s in streams if s.name != "stdout"]
    return "".join(stream.text for stream in streams)


def test_the_notebook_runs_and_shows_what_it_says(script: dict[str, Any], executed: Any, tmp_path: Path) -> None:
    text = printed(executed)
    total, payload = map(int, re.findall(r"sum: (\d+) bits; the payload has (\d+)", text)[0])
    assert 0 < payload - total < 24 + 64
    parts = [int(bits) for bits in re.findall(r"^(?:z|pass \d): (\d+) bits", text, re.M)]
    assert len(parts) == 5 and abs(sum(parts) - total) <= 5
    assert len(re.findall(r"^r\d: \d+ bytes", text, re.M)) == 6
    assert re.search(r"^Damaged: ", text, re.M), "the damaged frame was not refused"
    page = script["page"](executed, tmp_path, "out")
    pictures = re.findall(r"!\[.+\]\((out_\d\.webp)\)", page)
    assert len(pictures) == 5
    for name in pictures:
        with Image.open(tmp_path / name) as image:
            assert max(ImageStat.Stat(image.convert("L")).stddev) > 10, f"{name} is empty"


def test_the_page_shows_the_cells_of_the_notebook() -> None:
    page, cells = PAGE.read_text(), json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert re.findall(r"```python\n(.*?)\n```", page, re.S) == code, "run make notebook"
    for cell in cells:
        if cell["cell_type"] == "markdown":
            for part in "".join(cell["source"]).split("\n\n"):
                assert part in page, "run make notebook"
    assert all(not cell.get("outputs") for cell in cells), "commit the notebook without its output"
    for name in re.findall(r"\((look_inside_\d\.webp)\)", page):
        assert (FOLDER / name).exists()
