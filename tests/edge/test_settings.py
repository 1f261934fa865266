"""Settings: environment, file, bounds and secrets; docs/reference/edge.md lists them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from edge_encoder.metrics import Metrics
from edge_encoder.settings import EdgeSettings
from edge_encoder.source_settings import CameraSettings, FolderSettings, MqttSettings
from tests.support.roots import ROOT


def test_environment_beats_the_file_beats_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "edge.toml"
    file.write_text('port = 1234\nwindow_frames = 9\nsource_id = "mast"\n')
    monkeypatch.setenv("AEIC_EDGE_CONFIG", str(file))
    monkeypatch.setenv("AEIC_EDGE_PORT", "4321")
    settings = EdgeSettings()
    assert (settings.port, settings.window_frames, settings.source_id) == (4321, 9, "mast")
    assert settings.backoff_max_seconds == 60
    file.write_text("prot = 1\n")
    with pytest.raises(ValidationError, match="prot"):
        EdgeSettings()


def test_secrets_are_never_shown() -> None:
    settings = EdgeSettings(token="s3cret")
    assert "s3cret" not in repr(settings) + str(settings.model_dump())


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    for bad in (
        {"port": 70_000},
        {"tls_key": tmp_path / "k"},
        {"backoff_min_seconds": 5, "backoff_max_seconds": 1},
        {"cloud_address": "cloud"},
        {"spool_full_policy": "burn"},
        {"source_id": "mast\n7"},
        {"camera_source_id": "\U0001f4f7" * 64},
    ):
        with pytest.raises(ValidationError):
            EdgeSettings(**bad)


def test_an_empty_cloud_address_in_the_environment_never_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "edge.toml"
    file.write_text('cloud_address = "cloud.example:9090"\n')
    monkeypatch.setenv("AEIC_EDGE_CONFIG", str(file))
    assert EdgeSettings().cloud_address == "cloud.example:9090"
    monkeypatch.setenv("AEIC_EDGE_CLOUD_ADDRESS", "")
    monkeypatch.setenv("AEIC_EDGE_PORT", "")  # for all others an empty variable is none
    assert (EdgeSettings().cloud_address, EdgeSettings().port) == ("", 8080)
    assert EdgeSettings(cloud_address="other:1").cloud_address == "other:1"
    monkeypatch.delenv("AEIC_EDGE_CONFIG")
    assert EdgeSettings().cloud_address == ""


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("cloud.example", "no port"),
        ("cloud.example:", "no port"),
        ("cloud.example:http", "no port from 1 to 65535"),
        ("cloud.example:70000", "no port from 1 to 65535"),
        (":9090", "no host"),
        ("cloud example:9090", "no host"),
        ("https://cloud.example:9090", "is a URL"),
        ("::1:9090", "in brackets"),
        ("[cloud]:9090", "no IPv6 address"),
    ],
)
def test_addresses_are_checked_at_the_start(address: str, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        EdgeSettings(cloud_address=address)


def test_loopback_is_known_in_all_its_forms() -> None:
    for address in ("127.0.0.1:1", "127.8.0.1:1", "[::1]:1", "localhost:1"):
        assert EdgeSettings(cloud_address=address).cloud_is_loopback
    for address in ("10.0.0.1:1", "[2001:db8::1]:1", "cloud.example:1", ""):
        assert not EdgeSettings(cloud_address=address).cloud_is_loopback
    for proxy in ("http://10.0.0.1:3128", "http://user:pw@proxy.example:8080/", "none"):
        assert EdgeSettings(proxy=proxy).proxy == proxy
    for proxy in ("socks5://x:1", "proxy:3128", "http://proxy", "maybe"):
        with pytest.raises(ValidationError, match="proxy"):
            EdgeSettings(proxy=proxy)


def test_misspelt_variables_are_found() -> None:
    given = {"AEIC_EDGE_PORT": "1", "AEIC_EDGE_PROT": "1", "HOME": "/"}
    assert EdgeSettings.unknown_variables(given) == ["AEIC_EDGE_PROT"]


def test_the_docs_list_every_setting_with_its_default() -> None:
    text = (ROOT / "docs" / "reference" / "edge.md").read_text()
    rows = dict(re.findall(r"^\| `AEIC_EDGE_(\w+)` \| (.*) \|$", text, re.M))
    rows.pop("CONFIG", None)
    fields = EdgeSettings.model_fields
    assert {name.lower() for name in rows} == set(fields)
    for name, field in fields.items():
        default, _, description = rows[name.upper()].partition(" | ")
        assert description == field.description, name
        if field.default_factory is None:
            shown = "" if field.default is None else str(field.default)
            assert default.strip("`") == shown, name


def test_every_metric_is_in_the_docs() -> None:
    text = (ROOT / "docs" / "reference" / "edge.md").read_text()
    for family in Metrics().registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"| `{name}` |" in text and family.documentation in text
        assert name.startswith(("aeic_edge_", "process_"))


def test_the_docs_list_every_key_of_a_source_with_its_default() -> None:
    text = (ROOT / "docs" / "reference" / "edge.md").read_text()
    section = text.partition("### Cameras and folders")[2].partition("### States")[0]
    rows = {
        (name, default.strip("`"), said)
        for name, default, said in re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", section, re.M)
    }
    fields = {
        (name, "" if field.is_required() or field.default is None else str(field.default), field.description)
        for source in (CameraSettings, FolderSettings, MqttSettings)
        for name, field in source.model_fields.items()
    }
    assert rows == fields
