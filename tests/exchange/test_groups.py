"""Groups of updates: means by hand, and secure sums with the bits of the protocol's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.exchange.groups import (
    check_groups,
    drawn_groups,
    open_groups,
    ring_sums,
    secure_groups,
)
from research.exchange.robust import Robust, rule_stage
from research.exchange.secure_aggregation import FixedPoint, Identity, simulate
from research.exchange.secure_aggregation import Round as SecureRound
from research.exchange.stages import Round, Several, check_chain, mean

COUNT, GROUPS = 13, 4
draw = np.random.default_rng(0)
UPDATES = {
    "w": draw.uniform(-1, 1, size=(COUNT, 3, 4)).astype(np.float32),
    "b": draw.uniform(-1, 1, size=(COUNT, 2)).astype(np.float32),
}
WHO = draw.permutation(100)[:COUNT].astype(np.int32)
ALIVE = ~np.isin(np.arange(COUNT), [2, 7])
CODEC = FixedPoint(limit=1.0, bits=20)


def a_round(who: np.ndarray = WHO) -> Round:
    return Round(jnp.int32(0), jax.random.key(3), who=jnp.asarray(who))


def flat(tree: Any) -> np.ndarray:
    return np.concatenate(
        [np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], 1
    )


def several(alive: np.ndarray = ALIVE) -> Several:
    zeroed = jax.tree.map(
        lambda leaf: np.where(alive.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0), UPDATES
    )
    return Several(zeroed, jnp.asarray(alive, jnp.float32))


def test_groups_are_of_nearly_equal_size_whatever_the_order() -> None:
    group = np.asarray(drawn_groups(a_round(), GROUPS))
    assert sorted(np.bincount(group, minlength=GROUPS)) == [3, 3, 3, 4]
    order = draw.permutation(COUNT)
    np.testing.assert_array_equal(drawn_groups(a_round(WHO[order]), GROUPS), group[order])
    other = a_round()._replace(key=jax.random.key(4))
    assert (np.asarray(drawn_groups(other, GROUPS)) != group).any()


def test_open_groups_are_means_of_those_who_answered() -> None:
    made, _ = jax.jit(open_groups(GROUPS).apply)(several(), (), a_round())
    group = np.asarray(drawn_groups(a_round(), GROUPS))
    for number in range(GROUPS):
        members = (group == number) & ALIVE
        np.testing.assert_allclose(flat(made.updates)[number], flat(UPDATES)[members].mean(0), 1e-5)
        assert made.weight[number] == members.sum()


def test_secure_sums_of_groups_have_the_bits_of_the_protocol() -> None:
    """The floats of a group encoded on the host and summed by clients and server with masks: whose
    members are gone, of the others."""
    group = np.asarray(drawn_groups(a_round(), GROUPS))
    x = several()
    run = jax.jit(ring_sums, static_argnums=(2, 3))
    sums = flat(run(x.updates, group, GROUPS, CODEC))
    assert sums.dtype == np.uint32
    identities = [Identity() for _ in range(COUNT)]
    for number in range(GROUPS):
        members = np.flatnonzero(group == number)
        people = [identities[member] for member in members]
        round = SecureRound(
            tuple(each.public for each in people),
            size=14,
            threshold=len(people) // 2 + 1,
            minimum=3 if len(people) > 3 else None,
            smallest=2,
        )
        values = np.stack([CODEC.encode(flat(UPDATES)[member]) for member in members])
        gone = {place: 0 for place, member in enumerate(members) if not ALIVE[member]}
        outcome = simulate(round, people, values, gone)
        np.testing.assert_array_equal(sums[number], outcome.total)


def test_a_group_with_two_left_gives_nothing() -> None:
    made, _ = jax.jit(secure_groups(GROUPS, CODEC).apply)(several(), (), a_round())
    group = np.asarray(drawn_groups(a_round(), GROUPS))
    for number in range(GROUPS):
        members = (group == number) & ALIVE
        enough = members.sum() >= 3
        assert made.weight[number] == (members.sum() if enough else 0)
        wanted = flat(UPDATES)[members].mean(0) if enough else 0
        # Every number is rounded to half a step, and their sum to a float32.
        np.testing.assert_allclose(flat(made.updates)[number], wanted, atol=0.51 / CODEC.scale)
    assert 0 < sum(made.weight > 0) < GROUPS


def test_what_is_out_of_range_is_put_at_its_end() -> None:
    group = jnp.zeros(3, jnp.int32)
    x = jnp.asarray([[5.0], [-0.25], [0.125]])
    total = ring_sums(x, group, 1, CODEC)
    np.testing.assert_array_equal(CODEC.decode(np.asarray(total)), [[1.0 - 0.25 + 0.125]])


def test_secure_sums_forbid_what_sees_single_updates_and_offer_groups() -> None:
    krum = rule_stage(Robust("krum", 1))
    with pytest.raises(UserError) as caught:
        check_chain([secure_groups(1, CODEC), krum])
    assert (
        "krum sees single updates, and a secure sum of all shows nobody more than that: use "
        "--federated.aggregation.groups, whose sums stay secret and among whose means it chooses "
        "(5 or more)"
    ) in str(caught.value)
    check_chain([secure_groups(5, CODEC), krum])
    check_chain([secure_groups(1, CODEC), mean()])


def test_two_protect_nobody() -> None:
    with pytest.raises(UserError) as caught:
        check_groups(4, 11)
    assert "4 groups of 11 clients have 2: use --federated.aggregation.groups 3 or" in str(
        caught.value
    )
    check_groups(4, 12)
