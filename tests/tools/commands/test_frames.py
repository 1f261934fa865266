"""``aeic frames`` against a cloud."""

from __future__ import annotations

import json
from pathlib import Path

from aeic.bundle import Bundle
from tests.support.cli import aeic
from tests.support.cloud.cloud import CloudThread
from tests.support.frames import frame_maker


def test_the_newest_frames_are_printed_with_their_ids(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    make_frame = frame_maker(bundle)
    started = CloudThread(bundle, tmp_path, tokens="a:a-long-token", eager="none")
    try:
        rows = [started.put(make_frame(seed), tenant="a", source=f"mast-{seed % 2}") for seed in range(5)]
        cloud = ("--url", started.cloud.http, "--token", "a-long-token")
        code, said, _ = aeic("frames", "--limit", "3", *cloud)
        assert code == 0 and [line.split()[0] for line in said.splitlines()] == [str(row.id) for row in rows[:1:-1]]
        assert said.splitlines()[0].endswith("  mast-0") and f"{len(make_frame(4))} B" in said.splitlines()[0]
        code, said, _ = aeic("frames", "--source", "mast-1", "--json", *cloud)
        found = [json.loads(line) for line in said.splitlines()]
        assert code == 0 and [one["id"] for one in found] == [str(rows[3].id), str(rows[1].id)]
        assert found[0]["source"] == "mast-1" and found[0]["parent"] is None
        code, said, problem = aeic("frames", "--url", started.cloud.http)
        assert code == 1 and said == "" and "401" in problem
        code, said, problem = aeic("frames", "--url", "http://127.0.0.1:1")
        assert code == 1 and said == "" and "no answer from http://127.0.0.1:1 (" in problem and "--url" in problem
    finally:
        started.stop()
