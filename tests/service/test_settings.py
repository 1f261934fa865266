"""Settings of both services: environment before file before default, and nothing unknown is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from aeic_service.settings import ServiceSettings, readable
from cloud_decoder.settings import Settings as CloudSettings
from edge_encoder.settings import EdgeSettings

BOTH = pytest.mark.parametrize("settings", [EdgeSettings, CloudSettings], ids=["edge", "cloud"])


@BOTH
def test_the_environment_goes_before_the_file(
    settings: type[ServiceSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "service.toml"
    file.write_text('port = 1234\nlog_format = "text"\n')
    monkeypatch.setenv(settings.prefix + "CONFIG", str(file))
    monkeypatch.setenv(settings.prefix + "PORT", "4321")
    found = settings().model_dump()
    assert (found["port"], found["log_format"], found["log_level"]) == (4321, "text", "info")
    file.write_text("prot = 1\n")
    with pytest.raises(ValidationError, match="prot"):
        settings()
    file.unlink()
    with pytest.raises(FileNotFoundError, match="CONFIG"):
        settings()


@BOTH
def test_an_unknown_variable_is_named_with_the_nearest(settings: type[ServiceSettings]) -> None:
    environment = {settings.prefix + "PORTT": "1", settings.prefix + "CONFIG": "", "HOME": "/", "AEIC_BUNDLE": "x"}
    with pytest.raises(ValueError, match=rf"unknown setting \w+_PORTT \(perhaps {settings.prefix}PORT\); docs lists"):
        settings.refuse_unknown(environment, "docs")
    del environment[settings.prefix + "PORTT"]
    settings.refuse_unknown(environment, "docs")


@BOTH
def test_an_impossible_value_is_named_and_not_shown(
    settings: type[ServiceSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(settings.prefix + "PORT", "s3cret")
    with pytest.raises(ValidationError) as caught:
        settings()
    said = readable(caught.value, settings.prefix)
    assert said.startswith(settings.prefix + "PORT: ") and "s3cret" not in said
