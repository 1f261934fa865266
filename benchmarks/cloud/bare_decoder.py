"""Runs the decoder alone, as a worker does, in a process of its own on one core: no queue, no database, no service.

    python -m benchmarks.cloud.bare_decoder BUNDLE FRAMES

``FRAMES`` is a folder. The program prints ``ready``. Each line on stdin is a number of seconds: the program decodes
for that long, writes the pictures as PNG files in memory, and prints one line of JSON with the time (seconds since
1970) at which each frame was done.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from cloud_decoder.images import formats
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from tests.support.roots import ROOT

AHEAD = 2
"""Frames that are entropy-decoded before they are synthesised, as many as the measured workers hold."""


class BareDecoder:
    """One such process, pinned to ``core``."""

    def __init__(self, core: int, bundle: Path, frames: Path) -> None:
        command = [
            "taskset",
            "-c",
            str(core),
            sys.executable,
            "-m",
            "benchmarks.cloud.bare_decoder",
            str(bundle),
            str(frames),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._read() == "ready\n", "the bare decoder did not start; stderr says why"

    def begin(self, seconds: float) -> None:
        """Start decoding for that many seconds; :meth:`moments` returns the result."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def moments(self) -> list[float]:
        """The time at which decoding began, then the times at which frames were done (seconds since 1970)."""
        return list(json.loads(self._read()))

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def rates(decoders: list[BareDecoder], seconds: float) -> list[float]:
    """Frames a second of each decoder, during the time in which all of them work."""
    for one in decoders:
        one.begin(seconds)
    found = [one.moments() for one in decoders]
    end = min(moments[-1] for moments in found)  # after it, the others work alone
    within = [[moment for moment in moments if moment <= end] for moments in found]
    return [(len(moments) - 1) / (moments[-1] - moments[0]) for moments in within]


def main(bundle: str, folder: str) -> int:
    """Answer requests until stdin closes."""
    decoder = Decoder.from_bundle(bundle, "onnx", DecoderSettings(threads=1, entropy_workers=1, isolate=True))
    decoder.warm_up()
    frames = itertools.cycle([path.read_bytes() for path in sorted(Path(folder).iterdir())])
    print("ready", flush=True)
    for line in sys.stdin:
        moments = [time.time()]
        while moments[-1] - moments[0] < float(line):
            for picture in decoder.decode([next(frames) for _ in range(AHEAD)]):
                formats.encode(picture, formats.MASTER)
                moments.append(time.time())
        print(json.dumps(moments), flush=True)
    decoder.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
