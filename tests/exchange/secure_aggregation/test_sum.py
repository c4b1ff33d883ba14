"""The sum is that of those who stayed, bit for bit, whoever leaves when; or there is none."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research.exchange.secure_aggregation import FixedPoint, TooFew, WrongStage, simulate
from research.exchange.secure_aggregation.simulation import NEVER
from tests.exchange.secure_aggregation.conftest import (
    a_round,
    identities,
    play,
    some_values,
)

STAGES = range(NEVER)  # from which a client is silent

pytestmark = pytest.mark.usefixtures("quick_signatures")


def expected(count: int, drops: dict[int, int]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Those whose input came: silent from stage 3 (ConsistencyCheck) on at the earliest."""
    stayed = tuple(one for one in range(count) if drops.get(one, NEVER) > 2)
    return some_values(count)[list(stayed)].sum(0, dtype=np.uint32), stayed


def check(round: object, count: int, drops: dict[int, int]) -> None:
    outcome = simulate(round, identities(count), some_values(count), drops)
    total, survivors = expected(count, drops)
    assert outcome.survivors == survivors
    np.testing.assert_array_equal(outcome.total, total)


@pytest.mark.parametrize("count", range(2, 51))
def test_a_sum_of_any_number(count: int) -> None:
    """Complete graphs up to 16 clients and at 33 and 50, else six neighbors; one drops after its
    shares, from 5 clients on."""
    drops = {count // 2: 2} if count >= 5 else {}
    if count <= 16 or count in (33, 50):
        check(a_round(count, count // 2 + 1), count, drops)
    if count > 8:
        check(a_round(count, 4, neighbors=6), count, drops)


def test_every_way_to_drop_out_of_five() -> None:
    """t = 3: nobody, one or two of them, each from any stage on: 1 + 5·5 + 10·5² patterns."""
    round = a_round(5, 3)
    for gone in (*itertools.combinations(range(5), 1), *itertools.combinations(range(5), 2), ()):
        for stages in itertools.product(STAGES, repeat=len(gone)):
            check(round, 5, dict(zip(gone, stages, strict=True)))


def test_three_gone_of_five_are_one_too_many() -> None:
    """Whenever they go, there is no sum."""
    round = a_round(5, 3)
    for stages in itertools.combinations_with_replacement(STAGES, 3):
        drops = dict(zip((0, 2, 3), stages, strict=True))
        with pytest.raises(TooFew):
            simulate(round, identities(5), some_values(5), drops)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), count=st.integers(5, 12))
def test_dropouts_down_to_the_threshold(data: st.DataObject, count: int) -> None:
    threshold = count // 2 + 1
    pattern = data.draw(
        st.lists(st.integers(0, NEVER), min_size=count, max_size=count).map(
            lambda few: few[: count - threshold] + [NEVER] * threshold
        )
    )
    order = data.draw(st.permutations(range(count)))
    check(a_round(count, threshold), count, dict(zip(order, pattern, strict=True)))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_dropouts_on_a_sparse_graph(data: st.DataObject) -> None:
    """20 clients, 8 neighbors, t = 5: up to four may go, wherever they are."""
    gone = data.draw(st.lists(st.integers(0, 19), max_size=4, unique=True))
    drops = {one: data.draw(st.integers(0, 4)) for one in gone}
    check(a_round(20, 5, neighbors=8), 20, drops)


@pytest.mark.parametrize("stage", range(5))
def test_one_below_the_threshold_and_there_is_no_sum(stage: int) -> None:
    game = play(5, 3).until(stage)
    game.answer({0, 1, 2})
    for message in game.answers.values():
        game.server.receive(message)
    if stage < 4:
        with pytest.raises(TooFew, match="2 of 5 clients .* at least 3"):
            game.server.advance()
        for attempt in (game.server.advance, game.server.result):
            with pytest.raises(WrongStage):
                attempt()
    else:
        with pytest.raises(TooFew, match="2 holders gave shares of client 0, .* take 3"):
            game.server.result()
        with pytest.raises(WrongStage):
            game.server.result()


def test_what_floats_come_to() -> None:
    """Encoded, summed and decoded: within half a step a client of the floats' sum."""
    codec = FixedPoint(limit=2.0, bits=24)
    floats = np.random.default_rng(0).uniform(-2, 2, (7, 40_000)).astype(np.float32)
    codec.check(7)
    integers = np.stack([codec.encode(each) for each in floats])
    outcome = simulate(a_round(7, 4, size=40_000), identities(7), integers, {3: 2})
    kept = np.delete(floats, 3, axis=0).astype(np.float64)
    error = np.abs(codec.decode(outcome.total) - kept.sum(0))
    assert error.max() <= 6 / (2 * codec.scale)


def test_what_is_sent_is_what_the_fields_come_to() -> None:
    """16 clients, 6 neighbors; a byte for the kind and 32 for the round begin every message."""
    count, k, size, head = 16, 6, 1000, 33
    values = some_values(count, size)
    outcome = simulate(a_round(count, 4, neighbors=k, size=size), identities(count), values)
    sealed = 4 + 4 + 4 + 66 + 16
    keys, signature = 4 + 32 + 32 + 64, 4 + 64
    assert outcome.sent[0] == [
        head + keys,
        head + 4 + 32 + 4 + k * sealed,
        head + 4 + 4 + 4 * size,
        head + signature,
        head + 4 + 4 + 4 + (k + 1) * (4 + 33),
    ]
    assert outcome.received[0] == [
        0,
        head + 4 + count * keys,
        head + 4 + 4 * count + 4 + k * sealed,
        head + 4 + 4 * count + 4,
        head + 4 + count * signature,
    ]
