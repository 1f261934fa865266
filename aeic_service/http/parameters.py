"""Parameters that the routes of both services have: frame ids and waiting times."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Query

from aeic.identifiers import parse_id
from aeic_service.errors import InvalidParameter


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
    float, Query(ge=0, le=86400, allow_inf_nan=False, description="seconds; limited by the service's own maximum")
]
"""How long a request may wait."""
