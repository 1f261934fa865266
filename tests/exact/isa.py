"""One photograph through four processors: what any of them encodes, every one decodes to the same latents, to the bit.

    python -m tests.exact.isa [--bundle DIR] [--photo FILE] [--arm64-root DIR]

x86 as it is here, x86 AVX2 without VNNI (Haswell), ARM64 Cortex-A72 and ARM64 with everything, the last three by
qemu-user; each with other threads and graph-optimisation levels. Needs Linux on x86-64, root (chroot), Debian's
``qemu-user qemu-user-static debootstrap unzip``. The first call makes the ARM64 root (a few minutes), later ones keep
it. Exit code 1 if any digest differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from aeic.bundle import Bundle, default_bundle_path
from aeic.errors import BundleError
from tests.support.roots import ROOT

WORKER = Path(__file__).with_name("isa_worker.py")
SIDE = (128, 192)
MACHINES = ("native", "haswell", "cortex-a72", "arm64-max")
SETTINGS = {  # graph-optimisation level and threads, encoding and decoding
    "native": (("DISABLE_ALL", 2), ("ENABLE_ALL", 1)),
    "haswell": (("ENABLE_ALL", 1), ("ENABLE_ALL", 2)),
    "cortex-a72": (("ENABLE_EXTENDED", 2), ("DISABLE_ALL", 1)),
    "arm64-max": (("ENABLE_ALL", 1), ("ENABLE_BASIC", 2)),
}


def make_arm64_root(root: Path) -> None:
    if (root / "opt/site/onnxruntime").is_dir() and (root / "opt/site/PIL").is_dir():
        return
    print(f"making the ARM64 root {root}: some minutes, once", flush=True)
    wheels = [f"{name}=={version(name)}" for name in ("onnxruntime", "numpy", "pillow", "flatbuffers", "protobuf")]
    subprocess.run([str(WORKER.with_name("arm64_root.sh")), str(root), *wheels, "packaging"], check=True)


def command(machine: str, arm_root: Path) -> list[str]:
    if machine == "native":
        return [sys.executable]
    if machine == "haswell":
        return ["qemu-x86_64", "-cpu", "Haswell", sys.executable]
    processor = machine.removeprefix("arm64-")
    return ["chroot", str(arm_root), "/usr/bin/qemu-aarch64-static", "-cpu", processor, "/usr/bin/python3.11"]


def call(machine: str, arm_root: Path, work: Path, what: str, *rest: str) -> dict[str, object]:
    """Run the worker on a machine; paths are those of ``work``, which ARM64 sees as /work."""
    arm = machine not in ("native", "haswell")
    place = "/work" if arm else str(work)
    words = [f"{place}/isa_worker.py", what, f"{place}/bundle", *(word.replace("@", place) for word in rest)]
    environment = os.environ | {"PYTHONPATH": f"{place}:/opt/site" if arm else place, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    made = subprocess.run([*command(machine, arm_root), *words], env=environment, capture_output=True, text=True)
    if made.returncode:
        raise SystemExit(f"{machine} failed to {what}:\n{made.stdout}{made.stderr}")
    result: dict[str, object] = json.loads(made.stdout.strip().splitlines()[-1])
    print(f"  {machine:11} {what} {result['level']:16} {result['threads']} threads {time.monotonic() - start:6.1f} s")
    return result


def exact_bundle(named: Path | None, folder: Path) -> Path:
    """The bundle to test: the named or default one, or a small random one if there is none with integer graphs."""
    try:
        bundle = Bundle.load(named or default_bundle_path())
        if named or bundle.has("entropy.onnx"):
            return bundle.path
    except BundleError:
        if named:
            raise
    from tests.support.models.exact_models import write_exact_bundle

    print("no bundle with an exact entropy model: using a small random one")
    return write_exact_bundle(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--photo", type=Path, default=None, help="default: the first in examples/")
    parser.add_argument("--arm64-root", type=Path, default=Path(tempfile.gettempdir()) / "aeic-arm64")
    options = parser.parse_args()
    arm_root: Path = options.arm64_root.resolve()
    missing = [
        tool for tool in ("qemu-x86_64", "qemu-aarch64-static", "debootstrap", "unzip") if not shutil.which(tool)
    ]
    if missing or os.geteuid() != 0:
        raise SystemExit(f"needs root and: apt-get install qemu-user qemu-user-static debootstrap unzip ({missing})")
    make_arm64_root(arm_root)
    work = arm_root / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = exact_bundle(options.bundle, Path(scratch) / "bundle")
        shutil.copytree(bundle, work / "bundle")
    shutil.copytree(ROOT / "aeic", work / "aeic", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(WORKER, work)
    photo = options.photo or next(f for f in sorted((ROOT / "examples").iterdir()) if f.suffix in (".jpg", ".png"))
    picture = Image.open(photo).convert("RGB")
    picture.thumbnail((2 * SIDE[1], 2 * SIDE[1]))
    picture.crop((0, 0, SIDE[1], SIDE[0])).save(work / "photo.png")
    print(f"{photo.name}, {SIDE[1]}x{SIDE[0]}")
    for machine in MACHINES:
        level, threads = SETTINGS[machine][0]
        call(machine, arm_root, work, "encode", "@/photo.png", f"@/{machine}.aeic", level, str(threads))
    frames = [f"@/{machine}.aeic" for machine in MACHINES]
    digests: dict[str, set[object]] = {f"{machine}.aeic": set() for machine in MACHINES}
    for machine in MACHINES:
        level, threads = SETTINGS[machine][1]
        found = call(machine, arm_root, work, "decode", level, str(threads), *frames)["frames"]
        assert isinstance(found, dict)
        for frame, digest in found.items():
            digests[frame].add(digest)
    equal = all(len(found) == 1 for found in digests.values())
    for frame, found in digests.items():
        size = (work / frame).stat().st_size
        print(f"{frame:16} {size:5} bytes  decoded on {len(MACHINES)}: {', '.join(str(d)[:16] for d in found)}")
    print(
        json.dumps(
            {
                "machines": list(MACHINES),
                "frames": len(frames),
                "equal": equal,
                "digests": {frame: sorted(map(str, found)) for frame, found in digests.items()},
            }
        )
    )
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
