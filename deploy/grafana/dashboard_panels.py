"""A panel of the dashboard with its PromQL, and how the variables of the dashboard limit its queries."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

WINDOWS = ("5m", "1h", "6h", "3d")  # of the recording rules in deploy/prometheus/rules.yml

Query = tuple[str, str]  # PromQL, legend

# Matchers that the variables of the dashboard add to a query, by the names of its metrics.
MATCHERS = (
    (
        re.compile(r"\b(aeic_cloud_source_(?:silent|backlog|healthy|info)\w*)\b(?:{(.*?)})?"),
        'tenant=~"$tenant", source=~"$source"',
    ),
    (re.compile(r"\b(aeic_(?:cloud|edge)_\w+|process_\w+|up)\b(?:{(.*?)})?"), 'instance=~"$instance"'),
)


@dataclass(frozen=True)
class Panel:
    """One panel. ``alerts`` have a link to it, and it has links to their runbooks.

    ``needs`` names what must be there for the panel to have data: ``torch``, or the edge's ``sources`` or ``tls``.
    """

    title: str
    unit: str
    queries: list[Query]
    description: str
    alerts: tuple[str, ...] = ()
    number: bool = False
    needs: str = ""

    @property
    def id(self) -> int:
        """Derived from the title, so that a link keeps leading to this panel when others are added."""
        return zlib.crc32(self.title.encode()) % 10**6

    def selected(self) -> list[Query]:
        """The queries, limited by the variables of the dashboard."""
        return [(_select(query), legend) for query, legend in self.queries]


def _select(query: str) -> str:
    for names, matcher in MATCHERS:

        def add(found: re.Match[str], matcher: str = matcher) -> str:
            own = f", {found[2]}" if found[2] else ""
            return f"{found[1]}{{{matcher}{own}}}"

        query = names.sub(add, query)
    return query


def quantiles(
    metric: str, extra: str = "", only: tuple[float, ...] = (0.5, 0.95, 0.99), *, where: str = "", over: str = "2m"
) -> list[Query]:
    """Median, 95th and 99th percentile of a classic histogram, or ``only`` some of them; of the series ``where``."""
    by = f"le{', ' + extra if extra else ''}"
    legend = f" {{{{{extra}}}}}" if extra else ""
    matcher = f"{{{where}}}" if where else ""
    rate = f"sum by ({by}) (rate({metric}_bucket{matcher}[{over}]))"
    return [(f"histogram_quantile({q}, {rate})", f"p{round(100 * q)}{legend}") for q in only]


def rate(metric: str, label: str, text: str = "") -> list[Query]:
    """Events a second by one label."""
    return [(f"sum by ({label}) (rate({metric}[2m]))", text or f"{{{{{label}}}}}")]
