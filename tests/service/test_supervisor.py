"""Tasks that must not end: one that fails is named, counted and started again."""

from __future__ import annotations

import asyncio

from aeic_service.supervisor import Supervisor


async def test_a_task_that_dies_is_named_counted_and_started_again() -> None:
    counted: list[str] = []
    supervisor, runs = Supervisor(counted.append), 0
    again = asyncio.Event()

    async def fragile() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise KeyError("no such thing")
        again.set()
        await asyncio.sleep(60)

    async def short() -> None:
        pass

    tasks = [supervisor.start("camera", fragile), supervisor.start("video", short, may_end=True)]
    await asyncio.sleep(0.05)
    assert "camera" in supervisor.problem and "no such thing" in supervisor.problem and counted == ["camera"]
    await asyncio.wait_for(again.wait(), 10)
    assert supervisor.problem == ""
    camera, video = supervisor.tasks
    assert (camera.state, camera.restarts, video.state, video.restarts) == ("running", 1, "ended", 0)
    supervisor.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
