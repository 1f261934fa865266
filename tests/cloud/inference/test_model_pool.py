"""Several bundles: each frame is decoded by its own, loaded on demand; the least recently used one is unloaded."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.errors import BundleError, WrongModel
from cloud_decoder.errors import ModelUnavailable
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from cloud_decoder.inference.model_pool import ModelPool, size_of
from cloud_decoder.service import Cloud
from cloud_decoder.settings import Settings
from tests.support.cloud.cloud import IngestClient
from tests.support.frames import MakeFrame, frame_maker, new_frame
from tests.support.models.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundles(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    paths = [write_tiny_bundle(folder / f"tiny-{seed}", seed) for seed in (1, 2)]
    for path in paths:  # names of their own for their rate points
        manifest = json.loads((path / "bundle.json").read_text())
        manifest["rates"] = [rate | {"name": f"{path.name}-{rate['name']}"} for rate in manifest["rates"]]
        (path / "bundle.json").write_text(json.dumps(manifest))
    return [bundle, *map(Bundle.load, paths)]


def load(path: Path) -> Decoder:
    return Decoder.from_bundle(path, "onnx", DecoderSettings(threads=1))


def test_the_least_recently_used_bundle_is_unloaded_first(bundles: list[Bundle]) -> None:
    model_pool = ModelPool(bundles, load, max_bytes=2 * size_of(bundles[0]) + 1000)
    first, second, third = (bundle.fingerprint for bundle in bundles)
    for fingerprint in (first, second, first, third):
        with model_pool.acquire(fingerprint) as decoder:
            assert decoder.bundle.fingerprint == fingerprint
        assert model_pool.loaded_bytes <= model_pool.max_bytes
    assert [model_pool.loaded(one) for one in (first, second, third)] == [True, False, True]
    model_pool.close()
    assert model_pool.loaded_bytes == 0


def test_a_bundle_in_use_is_waited_for_and_every_caller_gets_its_turn(bundles: list[Bundle]) -> None:
    model_pool = ModelPool(bundles, load, max_bytes=size_of(bundles[0]) + 1000)
    used: list[str] = []

    def work(number: int) -> None:
        for step in range(6):
            fingerprint = bundles[(number + step) % 3].fingerprint
            with model_pool.acquire(fingerprint) as decoder:
                assert decoder.bundle.fingerprint == fingerprint and model_pool.loaded(fingerprint)
                assert model_pool.loaded_bytes <= model_pool.max_bytes
                time.sleep(0.002)
                used.append(fingerprint)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(used) == 24


def test_impossible_pools_are_refused_at_the_start(bundles: list[Bundle]) -> None:
    with pytest.raises(BundleError, match="the same fingerprint"):
        ModelPool([bundles[0], bundles[0]], load)
    with pytest.raises(BundleError, match="AEIC_CLOUD_MODEL_BYTES"):
        ModelPool(bundles, load, max_bytes=1000)
    with pytest.raises(WrongModel, match=bundles[1].fingerprint):
        ModelPool(bundles[:2], load).bundle("000000")


def test_a_bundle_that_fails_to_load_is_not_tried_again_at_once(bundles: list[Bundle]) -> None:
    def broken(path: Path) -> Decoder:
        if path == bundles[1].path:
            raise BundleError("it was altered")
        return load(path)

    model_pool = ModelPool(bundles, broken)
    with pytest.raises(ModelUnavailable), model_pool.acquire(bundles[1].fingerprint):
        pass
    assert not model_pool.usable(bundles[1].fingerprint) and model_pool.usable(bundles[0].fingerprint)
    with model_pool.acquire(bundles[0].fingerprint):
        pass


async def test_the_service_decodes_each_frame_with_its_bundle_and_all_rates_with_one_decoder(
    bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    from_bundle = Decoder.from_bundle

    def counted(path: Path, *arguments: Any, **options: Any) -> Decoder:
        decoder = from_bundle(path, *arguments, **options)
        loads.append(decoder.bundle.fingerprint)
        return decoder

    monkeypatch.setattr(Decoder, "from_bundle", counted)
    settings = Settings(
        port=0,
        grpc_port=0,
        data_dir=tmp_path,
        bundle=bundles[0].path,
        other_bundles=f"{bundles[1].path}, {bundles[2].path}",
        model_bytes=2 * size_of(bundles[0]) + 1000,
        threads=1,
        max_batch=4,
    )
    frames = {
        (bundle.fingerprint, rate): frame_maker(bundle)(7 + rate, rate=rate) for bundle in bundles for rate in (0, 1)
    }
    stored = [new_frame(frame_maker(bundle)(seed)) for seed in range(3) for bundle in bundles]

    cloud = Cloud(settings)
    await cloud.start()
    try:
        async with httpx.AsyncClient(base_url=cloud.http, timeout=30) as http, IngestClient(cloud.grpc) as edge:
            assert (await edge.hello(bundles[1])).window > 0
            for data in frames.values():
                assert (await http.post("/v1/decode", content=data)).status_code == 200
            cloud.store.frames.add(stored, time.time())
            cloud.backend.wake()
            end = time.monotonic() + 20
            while cloud.store.frames.counts()["done"] < len(stored):
                assert time.monotonic() < end
                await asyncio.sleep(0.02)
            metrics = (await http.get("/metrics")).text
            held = float(metrics.split("\naeic_cloud_models_bytes ")[1].split("\n")[0])
            assert 0 < held <= settings.model_bytes
            status = (await http.get("/v1/status")).json()
            assert status["bundle"]["fingerprint"] == bundles[0].fingerprint and status["rates"]
            assert [one["fingerprint"] for one in status["bundles"]] == [one.fingerprint for one in bundles]
            assert sum(one["loaded"] for one in status["bundles"]) in (1, 2)  # two have room
            for one, bundle in zip(status["bundles"], bundles, strict=True):
                assert one["rates"] == [{"number": r.number, "name": r.name, "bpp": r.bpp} for r in bundle.rates]
            listed = (await http.get("/v1/frames")).json()["frames"]
            assert {one["fingerprint"] for one in listed} == {bundle.fingerprint for bundle in bundles}
            names = {bundle.fingerprint: bundle.rates[0].name for bundle in bundles}
            assert all(one["rate_name"] == names[one["fingerprint"]] for one in listed)
    finally:
        await cloud.stop()
    assert loads[:3] == [bundle.fingerprint for bundle in bundles]  # both rates of each by one load
    assert len(loads) <= 3 + len(stored)


def test_a_frame_of_an_unknown_bundle_names_the_known_ones(decoder: Decoder, make_frame: MakeFrame) -> None:
    foreign = bytearray(make_frame(1))
    foreign[6] ^= 1
    frame = Frame.parse(bytes(foreign))
    with pytest.raises(WrongModel, match=decoder.bundle.fingerprint):
        ModelPool.of(decoder).bundle(frame.fingerprint)
