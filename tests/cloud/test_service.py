"""The process: one line when ready, SIGTERM drains, kill -9 loses nothing, the docs list every setting."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import httpx

from aeic.bundle import Bundle
from aeic.v1 import ingest_pb2 as pb
from cloud_decoder.metrics import Metrics
from cloud_decoder.settings import RetentionPolicy, Settings
from tests.support.cloud.cloud import IngestClient, cloud_process
from tests.support.frames import MakeFrame
from tests.support.roots import DOCS

GUIDE = DOCS / "reference" / "cloud.md"


async def test_killed_in_the_middle_it_loses_nothing(bundle: Bundle, make_frame: MakeFrame, tmp_path: Path) -> None:
    sent = {uuid4(): make_frame(seed, 256, 256) for seed in range(30)}

    async def feed(address: str) -> None:
        async with IngestClient(address) as edge:
            await edge.hello(bundle)
            for id, data in sent.items():
                await edge.send(data, id)
            for _ in sent:
                assert (await edge.ack()).status == pb.ACK_STATUS_STORED

    with cloud_process(bundle, tmp_path) as (running, addresses):
        assert addresses["service"] == "cloud"
        await feed(addresses["grpc"])
        running.send_signal(signal.SIGKILL)  # acknowledged a moment ago, hardly any decoded
        running.wait(10)
    with cloud_process(bundle, tmp_path) as (running, addresses), httpx.Client(base_url=addresses["http"]) as http:
        end = time.monotonic() + 20
        while http.get("/v1/status").json()["frames"]["done"] < len(sent):
            assert time.monotonic() < end
            time.sleep(0.1)
        for id, data in sent.items():
            assert http.get(f"/v1/frames/{id}/bitstream").content == data
        assert http.get(f"/v1/frames/{id}/image").status_code == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0


def test_an_error_at_the_start_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    wrong = [
        ("AEIC_CLOUD_BUNDLE", "/nowhere", 5, "no bundle at"),
        ("AEIC_CLOUD_DEVICE", "abacus", 2, "choose one of"),
        ("AEIC_CLOUD_MAX_BATCH", "none", 2, "AEIC_CLOUD_MAX_BATCH"),
        ("AEIC_CLOUD_TOKENS", "short", 2, "tenant:token"),
        ("AEIC_CLOUD_TOKEN", "tenant:long-enough", 2, "unknown setting AEIC_CLOUD_TOKEN (perhaps AEIC_CLOUD_TOKENS);"),
        ("AEIC_CLOUD_DATABASE_URL", "garbage", 2, "not a SQLAlchemy URL"),
    ]
    environment = os.environ | {"AEIC_CLOUD_BUNDLE": str(bundle.path), "AEIC_CLOUD_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "cloud_decoder", "--port", "0"]
    runs = [
        subprocess.Popen(
            command, env=environment | {name: value}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name, value, _, _ in wrong
    ]
    for run, (_, _, code, said) in zip(runs, wrong, strict=True):
        _, errors = run.communicate(timeout=120)
        assert run.returncode == code and said in errors and "Traceback" not in errors, errors


def test_two_clouds_do_not_share_a_folder(bundle: Bundle, tmp_path: Path) -> None:
    with cloud_process(bundle, tmp_path):
        second = subprocess.run(
            [sys.executable, "-m", "cloud_decoder", "--port", "0"],
            env=os.environ | {"AEIC_CLOUD_BUNDLE": str(bundle.path), "AEIC_CLOUD_DATA_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert second.returncode != 0 and "its own AEIC_CLOUD_DATA_DIR" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_port_that_is_taken_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    environment = os.environ | {"AEIC_CLOUD_BUNDLE": str(bundle.path), "AEIC_CLOUD_DATA_DIR": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "cloud_decoder", "--port", port, "--grpc-port", "0"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "choose another AEIC_CLOUD_PORT" in done.stderr and "Traceback" not in done.stderr


def test_the_docs_list_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `AEIC_CLOUD_(\w+)` \| (.*) \|$", GUIDE.read_text(), re.M))
    assert rows.pop("CONFIG")
    fields = Settings.model_fields
    assert set(rows) == {name.upper() for name in fields}
    for name, field in fields.items():
        default, text = rows[name.upper()].split(" | ")
        shown = field.default.get_secret_value() if hasattr(field.default, "get_secret_value") else field.default
        assert default == ("" if shown in (None, "") else f"`{shown}`"), name
        assert text == field.description, name


def test_the_docs_list_every_key_of_a_retention_policy() -> None:
    table = GUIDE.read_text().partition("### Retention policies")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.M))
    expected = {
        name: f"{'' if field.default is None else f'`{field.default}`'} | {field.description}"
        for name, field in RetentionPolicy.model_fields.items()
    }
    assert rows == expected


def test_the_docs_list_every_metric() -> None:
    listed = set(re.findall(r"^\| `((?:aeic_cloud|process)_\w+)` ", GUIDE.read_text(), re.M))
    made = {metric.name + ("_total" if metric.type == "counter" else "") for metric in Metrics().registry.collect()}
    assert listed == made


def test_torch_is_not_needed() -> None:
    code = "import sys, cloud_decoder.service; assert not {'torch', 'aeic_nets', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
