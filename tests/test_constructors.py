"""Constructors, and the functions that build routers, take at most six parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.support.roots import ROOT

MOST = 6
PACKAGES = (
    "aeic", "aeic_client", "aeic_nets", "aeic_service", "aeic_tools", "aeic_train", "cloud_decoder", "edge_encoder",
)  # fmt: skip
EXCEPTIONS: set[str] = set()
"""``Class`` or ``function`` of those that take more, each with its reason beside it."""


def counted(source: str) -> Iterator[tuple[str, int]]:
    """Every class with an ``__init__`` and every function that returns a router, with the number of its parameters.

    Dataclasses have no ``__init__`` in the source: they are what takes long lists.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            for one in node.body:
                if isinstance(one, ast.FunctionDef) and one.name == "__init__":
                    yield node.name, parameters(one) - 1
        elif isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns) == "APIRouter":
            yield node.name, parameters(node)


def parameters(function: ast.FunctionDef) -> int:
    taken = function.args
    return len(taken.posonlyargs) + len(taken.args) + len(taken.kwonlyargs)


def test_no_constructor_takes_more_than_six_parameters() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    found = [(path, name, number) for path in files for name, number in counted(path.read_text())]
    assert {name for _, name, _ in found} >= {"Ingest", "Uplink", "metrics_router"}
    too_many = {f"{path.relative_to(ROOT)}: {name} takes {number}" for path, name, number in found if number > MOST}
    assert {one for one in too_many if one.split()[1] not in EXCEPTIONS} == set()


def test_the_rule_counts_what_it_looks_for() -> None:
    assert list(counted("class A:\n    def __init__(self, a, b, /, c, *, d, e=1): ...")) == [("A", 5)]
    assert list(counted("def router(a, b, *, c) -> APIRouter: ...")) == [("router", 3)]
    assert list(counted("def other(a, b, *, c) -> int: ...")) == []
