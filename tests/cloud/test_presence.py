"""Which sources are connected, when a source has several streams."""

from __future__ import annotations

from cloud_decoder.presence import TWO_BOXES, Box, Presence, Report


def test_a_source_is_connected_until_its_last_stream_ends() -> None:
    presence = Presence()
    for tenant, source in (("a", "north"), ("a", "north"), ("b", "north")):
        presence.connect(tenant, source)
    presence.disconnect("a", "north")
    assert presence.is_connected("a", "north") and presence.connected == {("a", "north"), ("b", "north")}
    presence.disconnect("a", "north")
    assert not presence.is_connected("a", "north") and presence.connected == {("b", "north")}


def test_a_box_has_no_report_once_it_is_gone() -> None:
    """Also where another box sends for a camera of the same name, and where an older stream of its own lives on."""
    presence = Presence()
    presence.connect("t", "a")
    presence.box_connects("t", "a", b"", "edge 1")  # of an edge without a process id
    presence.set_report("t", "a", Report(5, 9, "the disk is full"))
    presence.connect("t", "a")  # the camera of another box
    presence.box_disconnects("t", "a", b"")
    presence.disconnect("t", "a")
    assert presence.is_connected("t", "a") and presence.box("t", "a") is None and not list(presence.boxes())
    presence.set_report("t", "a", Report(1, 1, ""))
    assert presence.box("t", "a") is None
    presence.box_connects("t", "a", b"1", "edge 2")
    presence.box_connects("t", "a", b"1", "edge 2")
    presence.box_disconnects("t", "a", b"1")
    assert presence.box("t", "a") == Box("edge 2")


def test_two_boxes_of_one_name_have_a_warning_until_one_is_gone() -> None:
    presence, report = Presence(), Report(1, 1, "")
    for box in (b"1", b"2", b"1"):  # the first one connects again, and its older stream is still there
        presence.box_connects("t", "a", box, "edge")
    presence.set_conflict("t", "a")
    presence.set_report("t", "a", report)
    assert presence.box("t", "a") == Box("edge", report, TWO_BOXES) and "AEIC_EDGE_SOURCE_ID" in TWO_BOXES
    presence.box_connects("t", "a", b"2", "edge")
    presence.box_disconnects("t", "a", b"2")
    assert presence.box("t", "a") == Box("edge", warning=TWO_BOXES)
    presence.box_disconnects("t", "a", b"2")
    assert presence.box("t", "a") == Box("edge")
    for _ in range(2):
        presence.box_disconnects("t", "a", b"1")
    presence.box_connects("t", "a", b"1", "edge")
    assert presence.box("t", "a") == Box("edge")
