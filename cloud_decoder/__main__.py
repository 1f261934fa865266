"""``python -m cloud_decoder [--host H] [--port P] [--grpc-port P]``: the service; everything else is AEIC_CLOUD_*."""

from __future__ import annotations

import argparse
import os
import sys

from aeic_service.settings import readable
from cloud_decoder.service import main
from cloud_decoder.settings import Settings


def _settings(arguments: list[str]) -> Settings:
    parser = argparse.ArgumentParser(
        prog="aeic cloud",
        description="Receives AEIC frames over gRPC, stores them, and serves the pictures over HTTP.",
        epilog="All settings are environment variables AEIC_CLOUD_*; docs/reference/cloud.md lists them.",
    )
    parser.add_argument("--host", help="address to listen on [env: AEIC_CLOUD_HOST]")
    parser.add_argument(
        "--port", type=int, help="HTTP port, 0 for a free one (then gRPC takes one too) [env: AEIC_CLOUD_PORT]"
    )
    parser.add_argument(
        "--role",
        choices=["all", "ingest", "worker"],
        help="role in a fleet, docs/how-to/fleet.md [env: AEIC_CLOUD_ROLE]",
    )
    parser.add_argument("--grpc-port", type=int, help="gRPC port, 0 for a free one [env: AEIC_CLOUD_GRPC_PORT]")
    parser.add_argument("--ray", action="store_true", help="a whole fleet on Ray (extra fleet), AEIC_FLEET_*")
    given = {
        name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None and name != "ray"
    }
    if given.get("port") == 0:
        given.setdefault("grpc_port", 0)  # a free HTTP port implies a free gRPC port
    try:
        Settings.refuse_unknown(os.environ, "docs/reference/cloud.md")
        return Settings(**given)
    except (ValueError, OSError, RecursionError) as error:
        print(f"cloud: invalid settings: {readable(error, Settings.prefix)}", file=sys.stderr)
        sys.exit(2)


def _run(arguments: list[str]) -> int:
    if "--ray" in arguments:
        from cloud_decoder.fleet.launcher import main as up

        return up(_settings([word for word in arguments if word != "--ray"]))
    return main(_settings(arguments))


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1:]))
