"""The lock files hold every extra, each pin with hashes; what runs on boxes and servers has wheels. No network."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
HASHED = sorted(path for path in FOLDER.glob("*.txt") if path.name != "wheels.txt")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
OLDEST_GLIBC = (2, 35)  # Ubuntu 22.04, and so JetPack 6; Debian 12 and Raspberry Pi OS are newer


def _environment(python: str, machine: str, **others: str) -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": machine,
        "platform_release": "6.1.0",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
        **others,
    }


def _applies(marker: Marker | None, python: str, machine: str) -> bool:
    return marker is None or marker.evaluate(_environment(python, machine, extra=""))


def _pins(path: Path) -> list[Requirement]:
    lines = path.read_text().splitlines()
    return [Requirement(line.removesuffix("\\").strip()) for line in lines if line and line[0] not in "# "]


def _version(pins: list[Requirement], name: str, python: str, machine: str) -> str | None:
    """The version that the lock gives this package there; there may be no more than one."""
    found = [
        str(pin.specifier).removeprefix("==")
        for pin in pins
        if canonicalize_name(pin.name) == canonicalize_name(name) and _applies(pin.marker, python, machine)
    ]
    assert len(found) <= 1, f"{name} has {found} on Python {python}, {machine}"
    return found[0] if found else None


def _requirements(texts: list[str]) -> Iterator[Requirement]:
    """The requirements on other packages, those of the extras that are named among them included."""
    for text in texts:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            for extra in sorted(requirement.extras):
                yield from _requirements(EXTRAS[extra])
        else:
            yield requirement


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("machine", MACHINES)
def test_the_lock_holds_what_every_extra_asks_for(python: str, machine: str) -> None:
    pins = _pins(ROOT / "constraints.txt")
    wrong = []
    for extra, texts in {"": PROJECT["dependencies"], **EXTRAS}.items():
        for requirement in _requirements(texts):
            if _applies(requirement.marker, python, machine):
                version = _version(pins, requirement.name, python, machine)
                if version is None or not requirement.specifier.contains(version, prereleases=True):
                    wrong.append(f"{extra}: {requirement} but {version} is locked")
    assert wrong == []


@pytest.mark.parametrize("path", HASHED, ids=lambda path: path.name)
def test_every_pin_has_hashes_and_the_version_of_the_whole_lock(path: Path) -> None:
    text = path.read_text()
    entries = re.split(r"\n(?=\S)", text)
    whole = {str(pin).partition(";")[0].strip() for pin in _pins(ROOT / "constraints.txt")}
    for entry in entries:
        if not entry.startswith("#"):
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    if path.name not in ("build.txt", "metrics.txt", "sbom.txt"):  # what is installed apart from the services
        assert {str(pin).partition(";")[0].strip() for pin in _pins(path)} <= whole


def test_no_lock_file_names_an_index() -> None:
    for path in (ROOT / "constraints.txt", *FOLDER.iterdir()):
        assert not path.is_file() or not re.search(r"https?://|--(extra-)?index-url|--find-links", path.read_text()), (
            path
        )


def _fits(tag: Tag, python: str, machine: str) -> bool:
    """Whether CPython `python` on a Linux `machine` with OLDEST_GLIBC takes a wheel with this tag."""
    minor = int(python.partition(".")[2])
    match tag.interpreter[:2], tag.interpreter[2:]:
        case "py", version:
            code = version in ("3", f"3{minor}") and tag.abi == "none"
        case "cp", version if tag.abi == "abi3":
            code = int(version[1:] or 0) <= minor
        case "cp", version:
            code = version == f"3{minor}" and tag.abi in (f"cp3{minor}", "none")
        case _:
            code = False
    if tag.platform == "any":
        return code
    glibc = re.fullmatch(rf"manylinux_(\d+)_(\d+)_{machine}", tag.platform)
    legacy = tag.platform in (f"manylinux1_{machine}", f"manylinux2010_{machine}", f"manylinux2014_{machine}")
    return code and (legacy or (glibc is not None and (int(glibc[1]), int(glibc[2])) <= OLDEST_GLIBC))


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("machine", MACHINES)
def test_boxes_and_servers_need_no_compiler(python: str, machine: str) -> None:
    """Every package of the extras in wheels.txt has a wheel that this Python takes on this machine."""
    without, checked = [], 0
    for entry in re.split(r"\n(?=\S)", (FOLDER / "wheels.txt").read_text()):
        head, *files = entry.split("\n")
        if head.startswith("#"):
            continue
        pin = Requirement(head)
        if _applies(pin.marker, python, machine):
            checked += 1
            tags = [tag for name in files if name for tag in parse_wheel_filename(name.strip())[3]]
            if not any(_fits(tag, python, machine) for tag in tags):
                without.append(str(pin))
    assert without == [] and checked > 30


def test_wheels_are_of_the_versions_in_the_lock() -> None:
    whole = {str(pin).partition(";")[0].strip() for pin in _pins(ROOT / "constraints.txt")}
    lines = [line for line in (FOLDER / "wheels.txt").read_text().splitlines() if line and line[0] not in "# "]
    assert {line.partition(" ;")[0] for line in lines} <= whole


def test_pythons_that_are_promised_are_those_that_are_checked() -> None:
    promised = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(9, 20) if f"3.{minor}" in promised] == list(PYTHONS)
    names = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert names == list(PYTHONS)
