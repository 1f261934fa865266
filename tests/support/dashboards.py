"""The dashboards and rules in deploy/, and the names of metrics in them."""

from __future__ import annotations

import re
from types import ModuleType

from tests.support.programs import load
from tests.support.roots import DEPLOY

RULES = DEPLOY / "prometheus" / "rules.yml"


def dashboard_module() -> ModuleType:
    """deploy/grafana/make_dashboard.py, which is in no package."""
    return load("make_dashboard", DEPLOY / "grafana" / "make_dashboard.py")


def metrics_in(text: str) -> set[str]:
    """Names of metrics of either service in ``text``."""
    return set(re.findall(r"\baeic_(?:cloud|edge)_\w+", text))
