"""URLs in messages, without the passwords in them."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote, unquote

_USER = re.compile(r"(?<=://)[^/?#'\"<>]*@")


def without_secrets(text: str, url: str, name: str = "the source") -> str:
    """``text`` with ``name`` in place of ``url``, and without its user, password and query, however they are written.

    Libraries repeat a URL as they have parsed it: with escapes, without them, or with other white space and slashes. So
    its secret parts are looked for by themselves, in all of these forms.
    """
    text = text.replace(url, name)
    _, _, rest = url.partition("://")
    user, _, _ = rest.rpartition("@")
    _, _, password = user.partition(":")
    _, _, query = rest.rpartition("@")[2].partition("?")
    for secret in (user, password, query.strip()):
        for form in sorted(_forms(secret), key=len, reverse=True):
            text = text.replace(form, "***")
    return _USER.sub("", text)


def _forms(secret: str) -> set[str]:
    plain = unquote(secret)
    forms = {secret, plain, quote(plain), quote(plain, safe=""), quote(secret), repr(plain)[1:-1], repr(secret)[1:-1]}
    forms |= {form.replace("\\", "/") for form in forms} | {form.replace("\\", "") for form in forms}
    forms |= {unicodedata.normalize("NFKC", form) for form in forms}
    forms |= {"".join(form.split()) for form in forms}
    return {form for form in forms if form.strip()}
