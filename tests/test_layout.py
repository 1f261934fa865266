"""Rules of the folders and of the tests: no folder is crowded, what tests share is in tests/support, none asserts a
duration."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.support.roots import ROOT

FILES = sorted(ROOT.glob("tests/**/*.py"))
CLOCKS = ("time.monotonic", "time.perf_counter", "time.process_time")

EXPLAINED = re.compile(r"# type: ignore\[[a-z, -]+\]  # \w")

MOST_MODULES = 15
"""In one folder, without ``__init__.py``."""
NOT_SOURCES = {"build", "dist", "out", "runs"}


def crowded_folders(root: Path) -> dict[Path, int]:
    """The folders of sources in ``root`` with more than :data:`MOST_MODULES` modules, and how many they have."""
    sources = [path for path in root.iterdir() if path.name[0] != "." and path.name not in NOT_SOURCES]
    modules = (path for source in sources for path in source.rglob("*.py") if path.name != "__init__.py")
    counts = Counter(path.parent.relative_to(root) for path in modules)
    return {folder: count for folder, count in counts.items() if count > MOST_MODULES}


def is_test_module(path: Path) -> bool:
    return path.name.startswith("test_") or path.name == "conftest.py"


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that ``tree`` may import, also inside functions; ``from a import b`` may mean ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden_imports(source: str) -> set[str]:
    names = {name for name in imported(ast.parse(source)) if name.startswith("tests.")}
    return {name for name in names if any(is_test_module(Path(f"{part}.py")) for part in name.split("."))}


def unexplained_ignores(source: str) -> list[int]:
    """The lines with a comment that makes mypy ignore an error, and no reason after it."""
    comments = (one for one in tokenize.generate_tokens(io.StringIO(source).readline) if one.type == tokenize.COMMENT)
    return [one.start[0] for one in comments if "type: ignore" in one.string and not EXPLAINED.match(one.string)]


def timed_assertions(source: str) -> list[int]:
    """Lines of assertions on a difference of clock readings, except in tests with the mark ``perf``."""
    tree = ast.parse(source)
    perf = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any("mark.perf" in ast.unparse(one) for one in node.decorator_list)
        for inner in ast.walk(node)
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
        and node not in perf
        and any(
            isinstance(part, ast.BinOp) and isinstance(part.op, ast.Sub) and any(c in ast.unparse(part) for c in CLOCKS)
            for part in ast.walk(node)
        )
    ]


def runs_a_loop(source: str) -> bool:
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return any(ast.unparse(call.func) == "asyncio.run" for call in calls)


def test_no_folder_has_too_many_modules() -> None:
    assert crowded_folders(ROOT) == {}


def test_a_crowded_folder_is_found(tmp_path: Path) -> None:
    for folder, count in (("package/full", MOST_MODULES), ("package/crowded", MOST_MODULES + 1), (".venv", 99)):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("__init__", *(f"module_{number}" for number in range(count))):
            (tmp_path / folder / f"{name}.py").touch()
    assert crowded_folders(tmp_path) == {Path("package/crowded"): MOST_MODULES + 1}


def test_no_module_imports_a_test_module_or_a_conftest() -> None:
    found = {path.relative_to(ROOT): forbidden_imports(path.read_text()) for path in FILES}
    assert {path: names for path, names in found.items() if names} == {}


def test_no_functional_test_asserts_a_duration() -> None:
    found = {path.relative_to(ROOT): timed_assertions(path.read_text()) for path in FILES if is_test_module(path)}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_every_ignored_type_error_has_its_reason() -> None:
    sources = [path for path in ROOT.glob("[!.]*/**/*.py") if path.relative_to(ROOT).parts[0] not in NOT_SOURCES]
    found = {path.relative_to(ROOT): unexplained_ignores(path.read_text()) for path in sources}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_coroutine_tests_are_coroutines() -> None:
    """pytest-asyncio runs them; a test with an event loop of its own would hide a task that was never awaited."""
    files = {path for path in FILES if path.name.startswith("test_")}
    files.remove(ROOT / "tests/service/http/test_http_rules.py")  # its fixture runs one scenario at either service
    assert [path.relative_to(ROOT) for path in sorted(files) if runs_a_loop(path.read_text())] == []


def test_the_rules_find_what_they_look_for() -> None:
    assert forbidden_imports("def f():\n    from tests.edge.test_spool import frame")
    assert forbidden_imports("from tests.cloud import conftest") and forbidden_imports("import tests.aeic.test_rans")
    assert not forbidden_imports("from tests.edge import abuse\nfrom tests.support.roots import ROOT")
    assert timed_assertions("def test_x():\n    assert time.monotonic() - begin < 6") == [2]
    assert timed_assertions("@pytest.mark.perf\ndef test_x():\n    assert time.monotonic() - begin < 6") == []
    reason = "# as above"
    assert unexplained_ignores("x = 1\nx.y = 2  # type: ignore[attr-defined]\nx.z = 2  # type: ignore") == [2, 3]
    assert unexplained_ignores(f"x.y = 2  # type: ignore[attr-defined, misc]  {reason}") == []
