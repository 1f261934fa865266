"""The client's example in docs/reference/cloud.md, run as it stands against a cloud with one frame."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

from aeic.bundle import Bundle
from tests.support.cloud.cloud import CloudThread
from tests.support.frames import MakeFrame
from tests.support.roots import DOCS

GUIDE = DOCS / "reference" / "cloud.md"


def test_the_example_runs(bundle: Bundle, make_frame: MakeFrame, tmp_path: Path) -> None:
    code = re.search(r"test_docs\.py -->\n```python\n(.*?)```", GUIDE.read_text(), re.S)
    assert code
    running = CloudThread(bundle, tmp_path)
    try:
        new = running.put(make_frame(1), source="roof-camera-1")
        done = threading.Event()

        def arrive() -> None:
            seed = 2
            while not done.wait(1.0):  # the example follows what arrives from now on, whenever that is
                running.put(make_frame(seed))
                seed += 1

        arriving = threading.Thread(target=arrive)
        arriving.start()
        names: dict[str, Any] = {"url": running.cloud.http, "id": new.id}
        try:
            exec(code.group(1), names)
        finally:
            done.set()
            arriving.join()
        assert names["picture"][:2] == b"\xff\xd8" and names["again"][:4] == b"\x89PNG"
        assert names["frame"].id != new.id
    finally:
        running.stop()
