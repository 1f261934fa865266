"""Which sources are connected, when a source has several streams."""

from __future__ import annotations

from cloud_decoder.presence import Presence


def test_a_source_is_connected_until_its_last_stream_ends() -> None:
    presence = Presence()
    for tenant, source in (("a", "north"), ("a", "north"), ("b", "north")):
        presence.connect(tenant, source)
    presence.disconnect("a", "north")
    assert presence.is_connected("a", "north") and presence.connected == {("a", "north"), ("b", "north")}
    presence.disconnect("a", "north")
    assert not presence.is_connected("a", "north") and presence.connected == {("b", "north")}
