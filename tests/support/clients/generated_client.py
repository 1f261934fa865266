"""A client of either service, made from its OpenAPI description as the documentation says."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.roots import DOCS, ROOT

TOOL = ROOT / ".venv-client" / "bin" / "openapi-python-client"


def generate(description: bytes, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package ``name`` in ``folder``, imported. Skips the test where the generator is not installed.

    Anything that the generator leaves out, or says of the description, fails the test.
    """
    if not TOOL.exists():
        pytest.skip("no openapi-python-client: `make packages-client` installs it")
    page = (DOCS / "reference" / "cloud.md").read_text()
    found = re.search(r"```yaml\n(content_type_overrides:.*?)```", page, re.S)
    assert found
    (folder / "openapi.json").write_bytes(description)
    (folder / "config.yml").write_text(found[1])
    command = [str(TOOL), "generate", "--path", "openapi.json", "--config", "config.yml", "--meta", "none"]
    # The tool formats what it has written with ruff, which is beside this Python, and warns if it finds none.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [*command, "--output-path", name], cwd=folder, env={**os.environ, "PATH": path},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and "arning" not in done.stdout + done.stderr, done.stdout + done.stderr
    monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module(name)
