"""The page at ``/``: its files."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter

from aeic_service.http import static_page

STATIC = Path(__file__).parents[1] / "static"


def router() -> APIRouter:
    """The page and the files that it loads."""
    return static_page.router(STATIC)
