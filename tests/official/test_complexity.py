"""Parameters and multiply-adds are the published ones, by part and in sum; what is run is smaller."""

from __future__ import annotations

import json

import pytest

from aeic import profiles
from aeic_nets.official import complexity

PARTS = {
    "se": {"g_a": 9.730, "h_a": 0.129, "h_s": 0.372, "context": 35.675, "g_s": 187.265, "unet": 1262.72, "lora": 83.84},
    "me": {"g_a": 46.923, "h_a": 0.202, "h_s": 0.582, "context": 156.269, "g_s": 187.412, "vae": 1192.64},
}


@pytest.mark.parametrize("name", ["se", "me"])
def test_every_part_is_counted_as_published(name: str) -> None:
    found = complexity.count(profiles.profile(name), 512, 768)
    assert {part: found["macs_by_part"][part] for part in PARTS[name]} == pytest.approx(PARTS[name], abs=0.005)
    assert found["attention_macs"] == pytest.approx({"unet": 350.46, "vae": 49.15}, abs=0.01)
    assert found["as_run"]["decode_macs"] < found["decode_macs"]


def test_the_command_ends_with_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert complexity.main(["--size", "256x256"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name, published in complexity.PUBLISHED.items():
        assert {figure: summary[name][figure] for figure in published} == pytest.approx(published, rel=0.003)


def test_a_size_that_is_none_is_refused() -> None:
    with pytest.raises(SystemExit):
        complexity.main(["--size", "large"])
