"""Executes look_inside.ipynb and writes look_inside.md, the same as a page with its output: `make notebook`.

    python docs/notebooks/run.py [FOLDER]    # the folder for the page and its pictures; by default, that of this file

The committed notebook has no output, and the page has. tests/tools/test_notebook.py checks that both have the same
cells.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).with_name("look_inside.ipynb")
SECONDS = 300
"""The longest time that a cell, or the start of the kernel, may take."""


def execute(path: Path = NOTEBOOK) -> Any:
    """The notebook with the outputs of a run in a new kernel. An error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        startup_timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"IPYTHONDIR": home, "JUPYTER_RUNTIME_DIR": home}  # for histories and connection files
        return client.execute()


def page(notebook: Any, folder: Path, stem: str) -> str:
    """The notebook as Markdown. Its pictures are written to ``folder`` as STEM_1.webp, STEM_2.webp and so on."""
    parts, pictures = [], 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                pictures += 1
                name = f"{stem}_{pictures}.webp"
                with Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) as image:
                    image.convert("RGB").save(folder / name, quality=80, method=6)
                parts.append(f"![Output of the code above]({name})")
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
    heading, text, *rest = parts[0].split("\n\n", 1) + parts[1:]
    note = f"This page is the output of [{NOTEBOOK.name}]({NOTEBOOK.name}); `make notebook` writes it again."
    return "\n\n".join([heading, text, note, *rest]) + "\n"


def main() -> None:
    """Entry point."""
    folder = Path(*sys.argv[1:2] or (NOTEBOOK.parent,))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NOTEBOOK.stem}.md").write_text(page(execute(), folder, NOTEBOOK.stem))


if __name__ == "__main__":
    main()
