"""An OpenAPI description as a page for people, which both services show at /docs.

Plain HTML without a script, and nothing from another host: a box on a mast has no internet, and a third-party script on
the origin of the API could do all that the API can.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d5d9d7, #39413e); --quiet: light-dark(#59625e, #a3ada8) }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 58rem; margin: 0 auto; padding: 1rem }
section { border-top: 1px solid var(--line); padding: .5rem 0 1rem }
h2 { font: 600 1.05rem/1.4 ui-monospace, monospace; overflow-wrap: anywhere }
h3 { font-size: 1rem; margin: 1rem 0 .25rem }
table { border-collapse: collapse; width: 100% } td { border-top: 1px solid var(--line); padding: .3rem .6rem .3rem 0 }
td { vertical-align: top; overflow-wrap: anywhere }
td:first-child { width: 11rem; font-family: ui-monospace, monospace }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .5rem; margin: .3rem 0; font-size: .85rem }
.quiet { color: var(--quiet) }
"""


def render(description: Mapping[str, Any]) -> str:
    """The page, as HTML, of an OpenAPI 3.1 ``description``: each route with its parameters, bodies and answers."""
    title, version = (escape(str(description["info"][name])) for name in ("title", "version"))
    routes = "".join(
        _route(method, path, operation)
        for path, methods in description.get("paths", {}).items()
        for method, operation in methods.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}: API</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
        f'<h1>{title} <span class="quiet">{version}</span></h1>'
        f'<p>The same for programs: <a href="/openapi.json">openapi.json</a></p>{routes}</html>'
    )


def _route(method: str, path: str, operation: Mapping[str, Any]) -> str:
    says = escape(operation.get("description") or operation.get("summary") or "").replace("``", "")
    parts = [f"<section><h2>{escape(method.upper())} {escape(path)}</h2><p>{says}</p>"]
    if parameters := operation.get("parameters"):
        parts.append("<h3>Parameters</h3>" + _table((one["name"], _parameter(one)) for one in parameters))
    if body := operation.get("requestBody"):
        parts.append("<h3>Body</h3>" + _table((kind, body.get("description", "")) for kind in body.get("content", {})))
    parts.append(
        "<h3>Answers</h3>" + _table((code, one["description"]) for code, one in operation["responses"].items())
    )
    parts += [_examples(code, one) for code, one in operation["responses"].items() if code < "300"]
    return "".join(parts) + "</section>"


def _parameter(parameter: Mapping[str, Any]) -> str:
    schema = parameter.get("schema", {})
    choices = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"] or [{}]
    kind = choices[0].get("type", "")
    words = [parameter["in"], " or ".join(map(str, choices[0].get("enum", []))) or kind]
    for name, shown in (("minimum", "from {}"), ("maximum", "to {}"), ("maxLength", "at most {} characters")):
        if name in choices[0]:
            words.append(shown.format(choices[0][name]))
    if schema.get("default") is not None:
        words.append(f"{schema['default']} by default")
    return ", ".join(word for word in words if word) + (
        f". {parameter['description']}" if parameter.get("description") else ""
    )


def _table(rows: Any) -> str:
    return "<table>" + "".join(f"<tr><td>{escape(a)}<td>{escape(str(b))}</tr>" for a, b in rows) + "</table>"


def _examples(code: str, operation: Mapping[str, Any]) -> str:
    found: list[Mapping[str, Any]] = []
    for content in operation.get("content", {}).values():
        found += [{"value": content["example"]}] if "example" in content else content.get("examples", {}).values()
    return "".join(
        f"<h3>Example, {escape(code)}</h3><p>{escape(one.get('summary', ''))}</p>"
        f"<pre>{escape(json.dumps(one['value'], indent=1))}</pre>"
        for one in found
    )
