"""``aeic delete`` against a cloud."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from aeic.bundle import Bundle
from tests.support.cli import aeic
from tests.support.cloud.cloud import CloudThread
from tests.support.frames import frame_maker


@pytest.mark.parametrize("arguments", [(), (str(uuid4()), "--source", "x"), (str(uuid4()), "--since", "2026-01-01")])
def test_frames_or_a_source_are_needed(arguments: tuple[str, ...]) -> None:
    code, _, said = aeic("delete", *arguments)
    assert code == 2 and "--source" in said


def test_frames_are_deleted_and_the_cloud_may_refuse(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    make_frame = frame_maker(bundle)
    started = CloudThread(bundle, tmp_path, tokens="a:a-long-token", eager="none")
    try:
        rows = [started.put(make_frame(seed), tenant="a", source=f"mast-{seed % 2}") for seed in range(5)]
        cloud = ("--url", started.cloud.http, "--token", "a-long-token")
        assert aeic("delete", str(rows[0].id), str(rows[1].id), *cloud) == (0, "2\n", "")
        assert aeic("delete", "--source", "mast-0", "--since", "2100-01-01", *cloud) == (0, "0\n", "")
        assert aeic("delete", "--source", "mast-0", *cloud) == (0, "2\n", "")
        code, _, said = aeic("delete", str(uuid4()), *cloud)
        assert code == 1 and "404" in said
        assert started.cloud.store.frames.counts("a")["pruned"] == 4
        store = str(started.cloud.store.url)
    finally:
        started.stop()
    assert aeic("store", "undelete", store) == (0, "0\n", "")
    assert aeic("store", "undelete", store, "--id", str(rows[0].id)) == (0, "1\n", "")
    assert aeic("store", "undelete", store, "--deleted") == (0, "3\n", "")
