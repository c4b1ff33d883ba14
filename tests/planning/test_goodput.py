"""The simulated goodput is that of formulas, where there are some."""

import math

import pytest

from research.planning.goodput import WAYS, Assumptions, goodput, interval

RARE = Assumptions(away=0.0)


def test_synchronous_training_is_as_young_says_while_failures_are_rare() -> None:
    """1 - goodput = C/τ + τ/(2·mean) + restart/mean, at first order."""
    devices = 4096
    mean = RARE.between_failures / devices
    tau = interval(devices, RARE)
    expected = 1 - (RARE.save / tau + tau / (2 * mean) + RARE.restart / mean)
    measured = [goodput("synchronous", devices, RARE, 400, seed) for seed in range(5)]
    # Terms of second order are about (1 - expected)², and the spread of five seeds is below.
    assert sum(measured) / 5 == pytest.approx(expected, abs=2 * (1 - expected) ** 2)


def test_elastic_training_loses_what_it_stops_for() -> None:
    """Twice the time to go on, half a snapshot, and the absence of a host, for every failure."""
    assumed = Assumptions()
    devices = 4096
    failures = devices / assumed.between_failures  # a second
    expected = 1 - failures * (
        2 * assumed.again + assumed.snapshot_every / 2 + assumed.away * assumed.host / devices
    )
    measured = [goodput("elastic", devices, assumed, 400, seed) for seed in range(5)]
    assert sum(measured) / 5 == pytest.approx(expected, abs=0.1 * (1 - expected))


def test_no_failure_costs_nothing_but_saves() -> None:
    never = Assumptions(between_failures=math.inf)
    assert goodput("elastic", 64, never, 1, 0) == goodput("diloco", 64, never, 1, 0) == 1
    saving = never.save / (never.longest_interval + never.save)
    assert goodput("synchronous", 64, never, 10, 0) == pytest.approx(1 - saving, abs=1e-3)


def test_the_more_devices_the_more_it_matters() -> None:
    at = {way: goodput(way, 100_000, Assumptions(), 10, 0) for way in WAYS}
    assert at["synchronous"] < at["elastic"] - 0.2 and at["elastic"] < at["diloco"] < 1
