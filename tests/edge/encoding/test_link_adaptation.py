"""Link adaptation on simulated links: the oldest frame stays young where the link allows it."""

from __future__ import annotations

import itertools

from edge_encoder.encoding.link_adaptation import LinkAdaptation

BYTES = [600, 900, 1200, 1800, 2400, 3600]  # one frame at each rate point


def simulate(link: list[float], wished: float = 20.0) -> tuple[list[int], list[float]]:
    """One frame a second; `link` is bytes per second, second by second. Rates chosen and ages of the oldest."""
    adaptation = LinkAdaptation(len(BYTES) - 1, wished)
    queue: list[list[float]] = []  # [created, bytes left]
    sent, rates, ages, credit = 0.0, [], [], 0.0
    for now, speed in enumerate(link):
        queue.append([now, BYTES[adaptation.rate]])
        credit = speed
        while queue and credit > 0:
            part = min(credit, queue[0][1])
            queue[0][1] -= part
            credit -= part
            sent += part
            if queue[0][1] <= 0:
                queue.pop(0)
        age = now - queue[0][0] if queue else 0.0
        rates.append(adaptation.observe(now, age, int(sum(left for _, left in queue)), int(sent)))
        ages.append(age)
    return rates, ages


def test_a_wide_link_keeps_the_best_rate() -> None:
    rates, ages = simulate([10_000.0] * 300)
    assert set(rates) == {5} and max(ages) == 0


def test_a_narrow_link_finds_a_rate_that_fits_and_holds_the_age() -> None:
    rates, ages = simulate([1300.0] * 1500)
    assert max(ages) <= 30
    settled = rates[500:]
    assert max(ages[500:]) <= 20
    assert 1000 <= sum(BYTES[r] for r in settled) / len(settled) <= 1350
    changes = sum(a != b for a, b in itertools.pairwise(settled))
    assert changes <= len(settled) / 10


def test_it_comes_back_after_an_outage() -> None:
    rates, ages = simulate([4000.0] * 200 + [0.0] * 100 + [4000.0] * 600)
    assert rates[299] == 0 and ages[299] >= 99
    assert rates[-1] == 5 and ages[-1] == 0


def test_a_link_too_narrow_for_anything_stays_at_the_lowest() -> None:
    rates, _ = simulate([100.0] * 300)
    assert set(rates[100:]) == {0}
