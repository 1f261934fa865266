"""The messages of earlier releases and these are understood by each other.

data/*.binpb are the descriptors of earlier versions of protos/aeic/v1/ingest.proto, as `protoc --descriptor_set_out`
writes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from aeic.v1 import ingest_pb2 as pb

DATA = Path(__file__).parent / "data"
RELEASES = ["ingest-before-requests", "ingest-before-originals", "ingest-before-reports"]


@pytest.fixture(params=RELEASES)
def earlier(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The message classes of an earlier version, by name."""
    files = descriptor_pb2.FileDescriptorSet.FromString((DATA / f"{request.param}.binpb").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    found = message_factory.GetMessageClassesForFiles([file.name for file in files.file], pool)
    return {name.rpartition(".")[2]: message for name, message in found.items()}


def test_every_field_of_before_has_its_number_and_type_still(earlier: dict[str, Any]) -> None:
    for name, message in earlier.items():
        now = getattr(pb, name).DESCRIPTOR
        for field in message.DESCRIPTOR.fields:
            same = now.fields_by_name[field.name]
            assert (same.number, same.type, same.is_repeated) == (field.number, field.type, field.is_repeated)
    for enum in earlier["Hello"].DESCRIPTOR.file.enum_types_by_name.values():
        now = pb.DESCRIPTOR.enum_types_by_name[enum.name]
        assert all(now.values_by_name[value.name].number == value.number for value in enum.values)


@pytest.mark.parametrize(
    "message",
    [
        pb.DeliverResponse(piece=pb.PieceAck(request_id=b"8" * 16, received_bytes=7)),
        pb.DeliverRequest(piece=pb.Piece(request_id=b"8" * 16, data=b"x" * 99)),
        pb.DeliverRequest(report=pb.Report(waiting_frames=9, problem="gate cannot be read")),
    ],
    ids=["PieceAck", "Piece", "Report"],
)
def test_what_is_new_is_no_message_to_an_earlier_peer(earlier: dict[str, Any], message: Any) -> None:
    known = message.WhichOneof("message") in earlier[type(message).__name__].DESCRIPTOR.fields_by_name
    read = earlier[type(message).__name__].FromString(message.SerializeToString())
    assert (read.WhichOneof("message") is not None) == known
    assert type(message).FromString(read.SerializeToString()) == message, "and it does no harm to it"


def test_a_hello_and_a_welcome_are_read_by_the_other_side(earlier: dict[str, Any]) -> None:
    hello = pb.Hello(source_id="mast-7", window=64, request_max_bytes=5, original_max_bytes=9)
    read = earlier["Hello"].FromString(hello.SerializeToString())
    assert (read.source_id, read.window) == ("mast-7", 64)
    old = pb.Hello.FromString(earlier["Hello"](source_id="mast-7", window=64).SerializeToString())
    assert (old.request_max_bytes, old.original_max_bytes) == (0, 0), "it is sent no requests"
    read = earlier["Welcome"].FromString(pb.Welcome(window=8, takes_originals=True).SerializeToString())
    assert read.window == 8
    assert not pb.Welcome.FromString(earlier["Welcome"](window=8).SerializeToString()).takes_originals
