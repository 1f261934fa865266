"""`aeic bundle stage|status|rollback`, or `python -m edge_encoder.bundle_update`: manages model bundles (staging.py).

Works on AEIC_EDGE_BUNDLES_DIR, or --dir. The service uses a staged bundle from its next start on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from aeic.errors import AeicError
from edge_encoder.bundle_update.staging import Staging


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 for wrong usage, 5 for a bundle that cannot be used; one line of JSON on stdout."""
    parser = argparse.ArgumentParser(prog="aeic bundle", description="Model bundles of an edge box.")
    says = "folder of the staged bundles [env: AEIC_EDGE_BUNDLES_DIR]"
    environment = os.environ.get("AEIC_EDGE_BUNDLES_DIR")
    parser.add_argument("--dir", type=Path, default=Path(environment) if environment else None, help=says)
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--dir", type=Path, default=argparse.SUPPRESS, help=says)
    verbs = parser.add_subparsers(dest="verb", required=True)
    stage = verbs.add_parser(
        "stage", parents=[place], help="copy a bundle, test it here and put it on trial at the next start"
    )
    stage.add_argument("source", type=Path, help="folder of the bundle")
    stage.add_argument("--digest", default="", help="SHA-256 (hex) that the bundle must have")
    verbs.add_parser("status", parents=[place], help="current, previous and trial")
    verbs.add_parser(
        "rollback", parents=[place], help="end the trial, or go back to the previous bundle, at the next start"
    )
    given = parser.parse_args(arguments)
    if given.dir is None:
        parser.error("no folder: give --dir or set AEIC_EDGE_BUNDLES_DIR")
    logging.basicConfig(level="INFO", format="%(message)s")
    try:
        staging = Staging(given.dir)
        if given.verb == "stage":
            staging.stage(given.source, given.digest)
        elif given.verb == "rollback":
            staging.rollback()
    except (AeicError, OSError) as error:
        print(f"bundles: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, AeicError) else 1
    print(json.dumps(dataclasses.asdict(staging.state)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
