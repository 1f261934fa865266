"""The table of faults in code and in docs, row by row."""

from __future__ import annotations

import re
from typing import Any

import pytest

from aeic.errors import BitstreamError, Damaged
from cloud_decoder.grpc_api.status import grpc_status
from cloud_decoder.inference.subprocess_backend import GeneratorFailure
from cloud_decoder.worker.faults import TABLE, outcome_of
from tests.support.roots import ROOT

ROW = re.compile(r"^\| `(\w+)` \| (frame|device|store|host) \| `(\w+)` \| ([^|]+) \| `(\w+)` \|$", re.M)
ROWS = {found[0]: found[1:] for found in ROW.findall((ROOT / "docs/reference/cloud.md").read_text())}


def test_the_docs_have_every_row_in_order() -> None:
    assert list(ROWS) == [kind.__name__ for kind in TABLE]


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
def test_each_row(kind: type[Exception]) -> None:
    error: Any = Damaged("x") if kind is BitstreamError else kind("x")
    outcome = outcome_of(error)
    fault, state, http, grpc = ROWS[kind.__name__]
    answer = outcome.answer("x") if outcome.answer else error
    assert (outcome.fault, outcome.state) == (fault, state)
    assert str(answer.http_status) in http and grpc_status(answer).name == grpc


def test_an_error_of_the_decoder_process_has_the_row_of_its_class() -> None:
    assert outcome_of(GeneratorFailure("OSError", "Too many open files")).fault == "host"
    assert outcome_of(GeneratorFailure("BlockingIOError", "again")).fault == "host"
    for kind in ("ZeroDivisionError", "Fail", "print", "KeyboardInterrupt"):
        assert outcome_of(GeneratorFailure(kind, "x")).fault == "frame"
