"""What the site needs besides the pages of docs/: a front page, and links into the repository that lead somewhere.

The front page is docs/index.md or, where there is none, README.md. A link from a page to a file of the repository
outside docs/ becomes its text, since the site does not hold that file. A link to a missing file ends the build.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent
log = logging.getLogger("mkdocs.hooks.links")
LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)")
SOURCE = re.compile(r"""(?P<attribute>\b(?:src|srcset|href)=["'])(?P<target>[^"':]+)(?P<quote>["'])""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """README.md is the front page where docs/ has none."""
    if files.get_file_from_path("index.md") is None:
        files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    return files


def resolve(target: str, folder: str, page: str) -> str | None:
    """The target as the site has it, seen from ``folder``, the page's own in the repository; None: not in the site."""
    path, _, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", target) or path.startswith("/"):
        return target
    named = posixpath.normpath(posixpath.join(folder, path))
    inside = posixpath.relpath(named, "docs")
    if named == "README.md":
        inside = "index.md"
    elif inside.startswith(".."):
        if not (ROOT / named).exists():
            log.warning("%s links to %s, and there is no %s", page, target, named)
        return None
    elif (ROOT / named).is_dir():
        entries = [f"{inside}/{name}" for name in ("index.md", "README.md") if (ROOT / named / name).exists()]
        if not entries:
            return None
        inside = entries[0]
    start = posixpath.relpath(folder, "docs") if folder else "."
    return posixpath.relpath(inside, start) + (f"#{anchor}" if anchor else "")


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite the links of a page."""
    source = page.file.src_uri
    generated = page.file.abs_src_path is None or not (ROOT / "docs" / source).exists()
    folder = "" if generated else posixpath.join("docs", posixpath.dirname(source))

    def link(found: re.Match[str]) -> str:
        target = resolve(found["target"], folder, source)
        if target is None:
            return "" if found["image"] else found["text"]
        return f"{found['image']}[{found['text']}]({target})"

    def attribute(found: re.Match[str]) -> str:
        target = resolve(found["target"], folder, source)
        return found[0] if target is None else f"{found['attribute']}{target}{found['quote']}"

    # Fenced code is left as it is.
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else SOURCE.sub(attribute, LINK.sub(link, part)) for part in parts)
