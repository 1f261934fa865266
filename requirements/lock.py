"""Writes the lock files: `make lock`. With --check (`make lock-check`), only says whether they fit pyproject.toml.

uv resolves. It runs with the index that the machine is configured for, and no file here names an index.

constraints.txt     every package of every extra, one version per Python version, no hashes: for `pip install -c`
requirements/*.txt  the same versions with hashes, one file per installation (INSTALLATIONS): for `pip install -r`
wheels.txt          the Linux wheels of what runs outside the laboratory (PORTABLE), for tests/tools/test_locks.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONSTRAINTS = Path("constraints.txt")
FOLDER = Path("requirements")
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OLDEST_PYTHON = "3.11"

# What is installed with hashes: the file's name and the extras it holds. `dev` is the environment of the Makefile.
INSTALLATIONS = {
    "edge-cpu": ["edge-cpu"],
    "edge-gpu": ["edge-gpu"],
    "cloud-cpu": ["cloud-cpu"],
    "cloud": ["cloud"],
    "fleet-ray": ["fleet-ray"],
    "client": ["client"],
    "test": ["test"],
    "dev": ["dev"],
}
# torch and what comes with it. A machine may serve another build of the same version (the CPU build), which has other
# hashes and needs no CUDA packages: the Makefile installs torch by its version, then everything else by its hash.
BUILDS_OF_THEIR_OWN = ("torch", "torchvision", "triton")
BUILDS_OF_THEIR_OWN_PREFIXES = ("nvidia-", "cuda-")
# Extras that are installed on boxes and servers, where nothing is compiled: each must have wheels for every Python.
PORTABLE = ("edge-cpu", "edge-camera", "edge-mqtt", "heif", "hub", "client", "tracing", "cloud-cpu", "fleet")


def compile_(uv: str, source: str, output: Path, *options: str) -> None:
    """Resolve `source` into `output` for every platform and Python version; what `output` holds already is kept."""
    command = [uv, "pip", "compile", source, "--universal", "--python-version", OLDEST_PYTHON, "-q"]
    command += ["--custom-compile-command", "make lock", "--output-file", str(output), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(options)}: {done.stderr}")


def pins(path: Path) -> list[str]:
    """The lines `name==version ; marker` of a lock file, without hashes and comments."""
    lines = path.read_text().splitlines()
    return [line.removesuffix("\\").strip() for line in lines if line and line[0] not in "# "]


def is_build_of_its_own(name: str) -> bool:
    """Whether a machine may serve a build of this package that has hashes of its own."""
    return name in BUILDS_OF_THEIR_OWN or name.startswith(BUILDS_OF_THEIR_OWN_PREFIXES)


def extras_options(extras: list[str] | tuple[str, ...]) -> list[str]:
    """The options of uv that choose these extras."""
    return [word for extra in extras for word in ("--extra", extra)]


def linux_wheels(pylock: Path) -> str:
    """The text of wheels.txt from a pylock.toml: each pin and, indented, its Linux wheels' file names."""
    lines = ["# Made by `make lock`: the wheels for Linux (glibc) of the extras " + ", ".join(PORTABLE) + "."]
    for package in tomllib.loads(pylock.read_text())["packages"]:
        marker = f" ; {package['marker']}" if "marker" in package else ""
        lines.append(f"{package['name']}=={package['version']}{marker}")
        names = [wheel.get("name") or wheel["url"].rpartition("/")[2] for wheel in package.get("wheels", [])]
        lines += sorted(
            f"    {name}"
            for name in names
            if name.endswith("-any.whl") or ("manylinux" in name and ("x86_64" in name or "aarch64" in name))
        )
    return "\n".join(lines) + "\n"


def write(uv: str, folder: Path, upgrade: bool) -> None:
    """Write every lock file below `folder`; those that are there already give the versions to keep."""
    newest = ["--upgrade"] if upgrade else []
    whole = folder / CONSTRAINTS
    compile_(uv, "pyproject.toml", whole, "--all-extras", "--no-annotate", *newest)
    apart = [line.partition("==")[0] for line in pins(whole)]
    without = [word for name in apart if is_build_of_its_own(name) for word in ("--no-emit-package", name)]
    hashed = ["--generate-hashes", "--no-annotate", "--constraints", str(whole)]
    for name, extras in INSTALLATIONS.items():
        output = folder / FOLDER / f"{name}.txt"
        output.unlink(missing_ok=True)
        compile_(uv, "pyproject.toml", output, *extras_options(extras), *hashed, *(without if name == "dev" else []))
    build = folder / FOLDER / "build.txt"
    build.unlink(missing_ok=True)
    compile_(uv, str(FOLDER / "build.in"), build, *hashed)
    # The perceptual metrics carry their weights in the wheel; what they declare (IPython, torchsummary) is not needed.
    metrics = folder / FOLDER / "metrics.txt"
    compile_(uv, str(FOLDER / "metrics.in"), metrics, "--generate-hashes", "--no-annotate", "--no-deps", *newest)
    compile_(uv, str(FOLDER / "sbom.in"), folder / FOLDER / "sbom.txt", "--generate-hashes", "--no-annotate", *newest)
    with tempfile.TemporaryDirectory() as made:
        pylock = Path(made) / "pylock.toml"
        compile_(
            uv,
            "pyproject.toml",
            pylock,
            *extras_options(PORTABLE),
            "--constraints",
            str(whole),
            "--format",
            "pylock.toml",
        )
        (folder / FOLDER / "wheels.txt").write_text(linux_wheels(pylock))


def check(uv: str) -> list[str]:
    """What is wrong: a lock file that `make lock` would write otherwise, an extra that the lock does not satisfy."""
    wrong = []
    committed = [CONSTRAINTS, *sorted(path.relative_to(ROOT) for path in (ROOT / FOLDER).glob("*.txt"))]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / FOLDER).mkdir()
        for path in committed:
            (folder / path).write_bytes((ROOT / path).read_bytes())
        write(uv, folder, upgrade=False)
        wrong += [
            f"{path} is out of date" for path in committed if (folder / path).read_bytes() != (ROOT / path).read_bytes()
        ]
        locked = {line.partition(" ;")[0] for line in pins(ROOT / CONSTRAINTS)}
        for extra in EXTRAS:
            output = folder / f"extra-{extra}.txt"
            compile_(
                uv,
                "pyproject.toml",
                output,
                "--extra",
                extra,
                "--constraints",
                str(ROOT / CONSTRAINTS),
                "--no-annotate",
            )
            missing = {line.partition(" ;")[0] for line in pins(output)} - locked
            wrong += [f"{extra} needs {pin}, which constraints.txt does not hold" for pin in sorted(missing)]
    return wrong


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--uv", default="uv", help="the uv to run")
    parser.add_argument("--upgrade", action="store_true", help="move every package to its newest version")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a file is out of date")
    chosen = parser.parse_args()
    if not chosen.check:
        write(chosen.uv, ROOT, chosen.upgrade)
        return
    wrong = check(chosen.uv)
    if wrong:
        sys.exit("\n".join([*wrong, "make lock writes these files again"]))
    print(f"the locks fit pyproject.toml: {len(pins(ROOT / CONSTRAINTS))} pins, {len(EXTRAS)} extras resolved")


if __name__ == "__main__":
    main()
