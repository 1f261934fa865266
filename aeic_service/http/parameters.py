"""Parameters that the routes of both services have: frame ids, numbers and waiting times."""

from __future__ import annotations

import re
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Query
from pydantic import BeforeValidator

from aeic.identifiers import parse_id
from aeic_service.errors import InvalidParameter

_JSON_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_LONGEST_NUMBER = 32
"""Characters."""


def json_number(value: object) -> object:
    """The number in a query parameter or a body, which is written as in JSON: ``1000``, ``1000.0`` and ``1e3`` are one
    integer. ``ValueError`` for the other forms that Pydantic would take, such as ``1_000``, ``+7`` and ``true``.

    Anything else than a string or a boolean is returned as it is, for Pydantic to judge.
    """
    if isinstance(value, bool):
        raise ValueError("give a number, and not a boolean")
    if not isinstance(value, str):
        return value
    if len(value) > _LONGEST_NUMBER or not _JSON_NUMBER.fullmatch(value):
        raise ValueError(f"give a number as in JSON, such as 7 or 0.5, of at most {_LONGEST_NUMBER} characters")
    return float(value) if set(value) & set(".eE") else int(value)


JSON_NUMBER = BeforeValidator(json_number)
"""In the annotation of every number in a query, after its ``Query``."""


def frame_id(text: str, name: str = "id") -> UUID:
    """The UUID in the path parameter or header ``name``. ``InvalidParameter`` for any form but 8-4-4-4-12 digits."""
    try:
        return parse_id(text)
    except ValueError:
        example = "0198c0de-0000-7000-8000-000000000000"
        raise InvalidParameter(f"{name} is not a UUID in the form 8-4-4-4-12, such as {example}") from None


async def _frame_id(id: str) -> UUID:
    return frame_id(id)


FrameId = Annotated[UUID, Depends(_frame_id)]
"""The frame id in the path. A cloud's route declares it after the tenant, so that a request without a token is
answered 401 whatever its id is."""
Seconds = Annotated[
    float,
    Query(ge=0, le=86400, allow_inf_nan=False, description="seconds; limited by the service's own maximum"),
    JSON_NUMBER,
]
"""How long a request may wait."""
