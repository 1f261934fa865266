"""Jobs over several files."""

from __future__ import annotations

import pytest

from aeic_tools import output
from aeic_tools.files import Job


def test_a_picture_for_which_there_is_no_memory_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def work(job: Job) -> None:
        if job.source == "a.png":
            raise MemoryError
        done.append(job.source)

    jobs = [Job("a.png", "a.aeic"), Job("b.png", "b.aeic")]
    assert output.each(jobs, work) == 1 and done == ["b.png"]
    assert "a.png: this machine has too little memory" in capsys.readouterr().err
