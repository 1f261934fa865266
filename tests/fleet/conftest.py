"""The cloud's fixtures: stores of both kinds, the tiny bundle's decoder, frames."""

from tests.support.cloud.fixtures import bundle, decoder, generator, make_frame, postgres, store_url

__all__ = ["bundle", "decoder", "generator", "make_frame", "postgres", "store_url"]
