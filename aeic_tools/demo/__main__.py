"""``make demo`` and ``make run``: both services on this machine, photographs through them, a table and a montage.

Like any other client, it uses the services over HTTP. It runs in an environment without torch.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aeic.errors import AeicError
from aeic.pixels import SUFFIXES, load_picture
from aeic_tools.comparison import psnr
from aeic_tools.demo import local_services
from aeic_tools.demo.client import RequestFailed, travel
from aeic_tools.demo.local_services import Pair, ServiceFailed
from aeic_tools.demo.montage import Exhibit, montage

HEAD = f"{'picture':<24}{'size':>10}{'bytes':>7}{'bpp':>8}{'encode':>9}{'decode':>9}{'end to end':>12}{'PSNR':>9}"


def show(pair: Pair, paths: Sequence[Path], out: Path, rate: str | None = None) -> bool:
    """Send every picture through ``pair``; write report.json and montage.png into ``out``. Whether all went well."""
    rows: list[dict[str, Any]] = []
    exhibits: list[Exhibit] = []
    failures: list[dict[str, str]] = []
    print(HEAD)
    for path in paths:
        try:
            row, exhibit = _one(pair, path, rate)
        except (AeicError, RequestFailed, TimeoutError, OSError, ValueError) as error:
            print(f"{path.name:<24}FAILED: {error}", flush=True)
            failures.append({"name": path.name, "error": str(error)})
            continue
        rows.append(row)
        exhibits.append(exhibit)
        print(_line(row), flush=True)
    all_ok = bool(rows) and not failures
    if rows:
        print(_line(_mean(rows)))
    out.mkdir(parents=True, exist_ok=True)
    report = {"frames": rows, "mean": _mean(rows) if rows else None, "failures": failures, "all_ok": all_ok}
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    montage(exhibits).save(out / "montage.png")
    return all_ok


def _one(pair: Pair, path: Path, rate: str | None) -> tuple[dict[str, Any], Exhibit]:
    data = path.read_bytes()
    original = load_picture(data)
    journey = travel(pair, data, rate)
    reconstruction = load_picture(journey.image)
    if reconstruction.shape != original.shape:
        raise ValueError(f"the original is {original.shape} and the reconstruction {reconstruction.shape}")
    height, width = original.shape[:2]
    row = {
        "name": path.name,
        "width": width,
        "height": height,
        "bytes": journey.accepted["bytes"],
        "bpp": 8 * journey.accepted["bytes"] / (width * height),
        "encode_ms": journey.accepted["encode_ms"],
        "decode_ms": journey.decode_ms,
        "end_to_end_ms": journey.end_to_end_ms,
        "psnr_db": psnr(original, reconstruction),
        "id": journey.accepted["id"],
        "source_bytes": len(data),
    }
    exhibit = Exhibit(
        original,
        reconstruction,
        f"{path.name}  {width}x{height}  {len(data):,} bytes",
        f"{row['bytes']:,} bytes  {row['bpp']:.4f} bpp  {row['psnr_db']:.1f} dB",
    )
    return row, exhibit


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = ("bytes", "bpp", "encode_ms", "decode_ms", "end_to_end_ms", "psnr_db")
    return {"name": "mean", **{key: sum(row[key] for row in rows) / len(rows) for key in keys}}


def _line(row: dict[str, Any]) -> str:
    size = f"{row['width']}x{row['height']}" if "width" in row else ""
    return (
        f"{row['name']:<24}{size:>10}{row['bytes']:>7.0f}{row['bpp']:>8.4f}{row['encode_ms']:>6.0f} ms"
        f"{row['decode_ms']:>6.0f} ms{row['end_to_end_ms']:>9.0f} ms{row['psnr_db']:>6.1f} dB"
    )


def pictures(places: Sequence[Path]) -> list[Path]:
    """The picture files of the given files and folders, by name. ``SystemExit`` if there is none."""
    files = [place for place in places if place.is_file()]
    for place in places:
        if place.is_dir():
            files += sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        sys.exit(f"no pictures in {', '.join(map(str, places))}")
    return files


def ask_command() -> str:
    """How ``aeic ask`` is called in the environment that runs this, which need not be the active one."""
    return f"{Path(os.path.relpath(Path(sys.executable).parent)) / 'aeic'} ask"


def keep(data: Path, bundle: Path | None) -> int:
    """Run both services until Ctrl-C or SIGTERM. Returns 1 if one of them ends unexpectedly."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        with local_services.pair(data, data, bundle) as pair:
            edge, cloud = pair.edge.http, pair.cloud.http
            print(f"edge   {edge}   (API: {edge}/docs)")
            print(f"cloud  {cloud}   (open it in a browser; API: {cloud}/docs; gRPC {pair.cloud.addresses['grpc']})")
            print("       drop a photograph on the cloud's page to send it through the edge")
            print(f"data and logs are in {data}; Ctrl-C stops both services\n")
            print(f"  curl --data-binary @examples/owl.jpg {edge}/v1/frames")
            print(f"  curl -o out/owl.png '{cloud}/v1/frames/ID/image?format=png&wait=30'")
            print(f"  {ask_command()} ID --region 400,100,180,120 -o out/closer.png --url {cloud}", flush=True)
            while all(service.process.poll() is None for service in (pair.edge, pair.cloud)):
                time.sleep(0.2)
            print("a service ended unexpectedly; see its log", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        print("\nstopped")
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. 0 if every picture came back."""
    parser = argparse.ArgumentParser(
        prog="python -m aeic_tools.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="*", type=Path, default=[Path("examples")], help="files and folders")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="for report.json, montage.png and the logs")
    parser.add_argument("--rate", help="rate point, by number or name; by default the bundle's")
    parser.add_argument("-m", "--model", type=Path, help="folder of the bundle [env: AEIC_BUNDLE]")
    parser.add_argument("--keep", action="store_true", help="only start both services, and keep them running")
    options = parser.parse_args(argv)
    try:
        if options.keep:
            return keep(Path("out/run"), options.model)
        files = pictures(options.pictures)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="aeic-demo-") as data:
            with local_services.pair(Path(data), options.out, options.model) as pair:
                ready = time.perf_counter() - start
                print(f"both services ready after {ready:.1f} s: edge {pair.edge.http}, cloud {pair.cloud.http}\n")
                all_ok = show(pair, files, options.out, options.rate)
            codes = {service.module: service.process.returncode for service in (pair.edge, pair.cloud)}
    except ServiceFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    if any(codes.values()):
        print(f"a service did not stop cleanly: {codes}", file=sys.stderr)
        all_ok = False
    print(f"\nwrote {options.out}/report.json and {options.out}/montage.png in {time.perf_counter() - start:.0f} s")
    return 0 if all_ok else 1


if __name__ == "__main__":
    sys.exit(main())
