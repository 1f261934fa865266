"""The pages for operators: the commands of backup.md run as they stand, and capacity.md has measured figures."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from aeic_tools.demo import local_services
from aeic_tools.demo.client import request
from tests.support.roots import DOCS, EXAMPLES, ROOT

PAGES = DOCS / "how-to"


def blocks(page: str, heading: str) -> list[str]:
    """The shell commands under a heading of a page, block by block."""
    _, found, text = (PAGES / page).read_text().partition(f"\n## {heading}\n")
    assert found, f"{page} has no heading {heading}"
    return [block.replace("\\\n", " ") for block in re.findall(r"```sh\n(.*?)```", text.partition("\n## ")[0], re.S)]


class Machine:
    """A machine whose folders are in ``root``, with a cloud that ``systemctl`` starts and stops."""

    def __init__(self, root: Path, bundle: Path) -> None:
        self.root, self.bundle = root, bundle
        self.cloud: local_services.Service | None = None
        for name in ("var/lib/aeic-cloud", "var/backups"):
            (root / name).mkdir(parents=True)

    def start(self) -> None:
        folder = str(self.root / "var/lib/aeic-cloud")
        self.cloud = local_services.cloud(self.root, self.root, self.bundle, AEIC_CLOUD_DATA_DIR=folder).wait_ready()

    def stop(self) -> None:
        assert self.cloud is not None and self.cloud.stop() == 0
        self.cloud = None

    def run(self, block: str) -> list[str]:
        """What each line of a block prints."""
        said = []
        for line in block.splitlines():
            if line.startswith("systemctl "):
                assert re.fullmatch(r"systemctl (stop|start) aeic-cloud", line), line
                self.start() if " start " in line else self.stop()
                continue
            line = line.replace("/var/", f"{self.root}/var/")
            line = re.sub(r"^aeic\b", f"{shlex.quote(sys.executable)} -m aeic_tools.cli", line)
            if self.cloud is not None:
                line = line.replace("http://127.0.0.1:8081", self.cloud.http)
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, f"{line}: {done.stderr}"
            said.append(done.stdout)
        return said


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page uses curl")
def test_a_backup_is_made_checked_and_restored_as_the_page_says(tmp_path: Path, tiny_bundle: Path) -> None:
    back_up, check = blocks("backup.md", "Back up the store")
    restore, look = blocks("backup.md", "Restore the store")
    machine = Machine(tmp_path, tiny_bundle)
    machine.start()
    try:
        assert machine.cloud is not None
        with local_services.edge(tmp_path, tmp_path, machine.cloud.addresses["grpc"], tiny_bundle) as edge:

            def post(name: str) -> str:
                body = (EXAMPLES / name).read_bytes()
                return str(json.loads(request(f"{edge.http}/v1/frames?wait=delivered", body))["id"])

            before = post("owl.jpg")
            machine.run(back_up)
            (checked,) = machine.run(check)
            assert json.loads(checked)["ok"] and json.loads(checked)["frames"] == 1
            post("coffee.jpg")  # after the backup
        machine.run(restore)
        ready, status = machine.run(look)
        assert json.loads(ready)["status"] == "ready" and sum(json.loads(status)["frames"].values()) == 1
        assert len(request(f"{machine.cloud.http}/v1/frames/{before}/image?wait=30")) > 1000
    finally:
        if machine.cloud is not None:
            machine.stop()
    assert len(list((tmp_path / "var/lib/aeic-cloud").glob("store.db.before-*"))) >= 1


def test_pages_wait_for_a_service_that_starts() -> None:
    """systemctl start returns before the cloud listens."""
    found = [line for page in PAGES.glob("*.md") for line in re.findall(r"^curl .*/readyz$", page.read_text(), re.M)]
    assert len(found) >= 4 and [line for line in found if "--retry 30 --retry-connrefused" not in line] == []


def test_the_message_of_the_downgrade_is_that_of_the_program(tmp_path: Path, tiny_bundle: Path) -> None:
    from sqlalchemy import create_engine, text

    from cloud_decoder.store.migrate import HEAD
    from cloud_decoder.store.store import Store

    page = (PAGES / "upgrade.md").read_text()
    (said,) = re.findall(r"^cloud: (the store has revision .*)$", page, re.M)
    Store(f"sqlite:///{tmp_path}/store.db").close()
    newer = f"{int(HEAD) + 1:04}"
    engine = create_engine(f"sqlite:///{tmp_path}/store.db")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :newer"), {"newer": newer})
    engine.dispose()
    before = (tmp_path / "store.db").read_bytes()
    environment = os.environ | {"AEIC_CLOUD_DATA_DIR": str(tmp_path), "AEIC_CLOUD_BUNDLE": str(tiny_bundle)}
    command = [sys.executable, "-m", "cloud_decoder", "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    pattern = re.sub(r"\d+", r"\\d+", re.escape(said))  # of any two revisions
    assert done.returncode == 1 and re.search(pattern, done.stderr), done.stderr
    assert (tmp_path / "store.db").read_bytes() == before


def test_the_figures_of_the_capacity_page_are_measured_ones() -> None:
    page = (PAGES / "capacity.md").read_text()
    machine_a = (DOCS / "results" / "services.md").read_text()
    machine_a += "".join(path.read_text() for path in (ROOT / "benchmarks" / "results").glob("*.json"))
    machine_b = (ROOT / "benchmarks" / "README.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \|(?: ([^|]*)\|)? `(aeic bench [^`]+)`", page, re.M)
    assert len(rows) >= 9 and any(on_b.strip() for _, on_b, _ in rows)
    for on_a, on_b, command in rows:
        if "about" in on_a:  # a size that the command prints with its own frames
            continue
        for figures, measured in ((on_a, machine_a), (on_b, machine_b)):
            for figure in re.findall(r"\d[\d,.]*\d", figures.partition(" for one of ")[0]):
                plain = figure.replace(",", "")
                assert figure in measured or plain in measured, f"{command}: {figure} is in no result"


def test_the_spool_takes_what_the_capacity_page_says() -> None:
    from edge_encoder.settings import EdgeSettings
    from edge_encoder.spool.record import Record
    from edge_encoder.spool.schema import cost

    page = (PAGES / "capacity.md").read_text()
    (more,) = re.findall(r"the bytes of its source id, and about (\d+) more", page)
    (frames,) = re.findall(r"holds ([\d,]+) frames", page)
    record = Record(uuid.uuid4(), bytes(1000), 768, 512, 2, source_id="a-box-in-the-hills")
    assert abs(cost(record) - 1000 - len(record.source_id) - int(more)) <= 5
    held = EdgeSettings.model_fields["spool_max_bytes"].default / cost(record)
    assert held == pytest.approx(int(frames.replace(",", "")), rel=0.02)
