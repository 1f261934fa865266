"""docs/how-to/fleet.md lists every setting of the fleet with its default."""

from __future__ import annotations

import re

from cloud_decoder.fleet.settings import FleetSettings
from tests.support.roots import DOCS

GUIDE = DOCS / "how-to" / "fleet.md"


def test_the_docs_list_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `AEIC_FLEET_(\w+)` \| (.*) \|$", GUIDE.read_text(), re.M))
    assert set(rows) == {name.upper() for name in FleetSettings.model_fields}
    for name, field in FleetSettings.model_fields.items():
        default, text = rows[name.upper()].split(" | ")
        assert default == (f"`{field.default}`" if field.default != "" else ""), name
        assert text == field.description, name
