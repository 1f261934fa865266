"""The dashboards and rules in deploy/, and the names of metrics in them."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType

from tests.support.roots import DEPLOY

RULES = DEPLOY / "prometheus" / "rules.yml"


def dashboard_module() -> ModuleType:
    """deploy/grafana/make_dashboard.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("make_dashboard", DEPLOY / "grafana" / "make_dashboard.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


def metrics_in(text: str) -> set[str]:
    """Names of metrics of either service in ``text``."""
    return set(re.findall(r"\baeic_(?:cloud|edge)_\w+", text))
