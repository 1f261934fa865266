"""Passwords of URLs in messages of libraries."""

from __future__ import annotations

from urllib.parse import quote, unquote

import pytest

from aeic_service.redact import without_secrets


@pytest.mark.parametrize(
    "password", ["plain-word", "back\\\\slash", "no\u00a0break", "a@b:c", "sp ace", "per%20cent", "ünï"]
)
def test_a_password_does_not_survive_in_any_form(password: str) -> None:
    url = f"rtsp://user:{password}@camera.example/live?key=token-{password}"
    plain = unquote(password)
    forms = {password, plain, quote(plain), quote(plain, safe=""), repr(plain), plain.replace("\u00a0", " ")}
    forms |= {plain.replace("\\", "/"), plain.replace("\u00a0", "").replace(" ", "")}
    for form in forms:
        text = f"cannot open {url}: no route to rtsp://user:{form}@camera.example/live?key=token-{form} ({form})"
        said = without_secrets(text, url)
        assert form.strip("'") not in said, said
        assert "camera.example" in said or "the source" in said


def test_a_query_is_secret() -> None:
    said = without_secrets(
        "404 for http://camera/mjpeg?key=open-sesame&x=1", "http://camera/mjpeg?key=open-sesame&x=1 "
    )
    assert "sesame" not in said


def test_a_url_without_secrets_only_gets_its_name() -> None:
    said = without_secrets("[Errno 111] Connection refused: 'rtsp://camera/live'", "rtsp://camera/live")
    assert said == "[Errno 111] Connection refused: 'the source'"
