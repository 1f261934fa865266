"""The cloud's fixtures: its tiny bundle, and frames made with it."""

from tests.support.cloud.fixtures import bundle, make_frame

__all__ = ["bundle", "make_frame"]
