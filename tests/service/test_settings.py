"""Settings of both services: environment before file before default, and nothing unknown is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

import cloud_decoder.__main__
import edge_encoder.__main__
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


@BOTH
def test_every_secret_can_come_from_a_file(
    settings: type[ServiceSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    values = {
        "tokens": "a:secret-of-a",
        "database_url": "sqlite:///x.db",
        "token": "s3cret",
        "camera_url": "rtsp://u:p@c",
        "originals_key": "5e" * 32,
    }
    assert settings.secrets()
    for name in settings.secrets():
        variable = f"{settings.prefix}{name.upper()}"
        file.write_text(values[name] + "\n")
        monkeypatch.setenv(variable + "_FILE", str(file))
        settings.refuse_unknown({variable + "_FILE": str(file)}, "docs")
        assert getattr(settings(), name).get_secret_value() == values[name]
        monkeypatch.setenv(variable, "another")
        with pytest.raises(ValueError, match="both set") as caught:
            settings()
        assert values[name] not in str(caught.value)
        monkeypatch.delenv(variable)
        monkeypatch.setenv(variable + "_FILE", str(tmp_path / "none"))
        with pytest.raises(ValueError, match=f"{variable}_FILE"):
            settings()
        monkeypatch.delenv(variable + "_FILE")


@BOTH
def test_only_secrets_have_a_file(settings: type[ServiceSettings]) -> None:
    with pytest.raises(ValueError, match="unknown setting"):
        settings.refuse_unknown({settings.prefix + "PORT_FILE": "x"}, "docs")


@pytest.mark.parametrize("side", ["edge", "cloud"])
def test_values_that_are_nested_too_deeply_are_wrong_settings(
    side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the file, and in a variable that holds JSON."""
    file = tmp_path / "service.toml"
    file.write_text("port = " + "[" * 50_000)
    variable = {"edge": "AEIC_EDGE_CAMERAS", "cloud": "AEIC_CLOUD_RETENTION_POLICIES"}[side]
    for name, value in (("CONFIG", str(file)), (variable.split("_", 2)[2], "[" * 50_000)):
        with monkeypatch.context() as environment:
            environment.setenv(f"AEIC_{side.upper()}_{name}", value)
            if side == "edge":
                assert edge_encoder.__main__.main([]) == 2
            else:
                with pytest.raises(SystemExit, match="2"):
                    cloud_decoder.__main__._settings([])
        said = capsys.readouterr().err
        assert said.startswith(f"{side}: invalid settings: ") and "nested too deeply" in said, said[:500]
