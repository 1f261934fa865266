"""The cloud's own fixtures: its tiny bundle, and frames made with it."""

from tests.cloud.conftest import bundle, make_frame

__all__ = ["bundle", "make_frame"]
