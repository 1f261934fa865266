"""Fixtures that the tests of the cloud, of its client and of the fleet share; their conftest modules import them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aeic.bundle import Bundle
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from tests.support.cloud.cloud import FakeGenerator
from tests.support.cloud.postgres import Postgres, missing
from tests.support.frames import MakeFrame, frame_maker


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    """The tiny bundle, loaded."""
    return Bundle.load(tiny_bundle)


@pytest.fixture(scope="session")
def make_frame(bundle: Bundle) -> MakeFrame:
    """Makes whole frames of random latents, different for each seed."""
    return frame_maker(bundle)


@pytest.fixture
def generator(bundle: Bundle) -> FakeGenerator:
    """A generator under the control of the test."""
    return FakeGenerator(bundle)


@pytest.fixture
def decoder(bundle: Bundle, generator: FakeGenerator) -> Decoder:
    """The tiny bundle's decoder with that generator."""
    return Decoder(bundle, generator, settings=DecoderSettings(threads=1, max_batch=4))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server; skips where none is installed."""
    if why_not := missing():
        pytest.skip(why_not)
    server = Postgres().start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.fresh()
