"""Chains of stages: which there are, and what the stages that see one update do to it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.exchange.codecs import CODECS
from research.exchange.senders import clip, coded, largest
from research.exchange.stages import Round, Stage, check_chain, mean

ROUND = Round(jnp.int32(0), jax.random.key(0))
draw = np.random.default_rng(0)
UPDATE = {
    "w": draw.normal(size=(16, 24)).astype(np.float32),
    "b": draw.normal(size=5).astype(np.float32),
}


def passing(x: Any, state: Any, round: Round) -> Any:
    return x, state


MEDIAN = Stage("median", "all", "result", passing, counts_alike=True)
MIXING = Stage("mixing", "all", "all", passing)
SECRET = Stage("secure sum", "one", "sum", passing)
SUM = Stage("a sum", "sum", "sum", passing)
NOISE = Stage("noise", "sum", "sum", passing, charges=True)


@pytest.mark.parametrize(
    "stages",
    [
        [mean()],
        [clip(1.0), coded("int8", CODECS["int8"]()), mean()],
        [clip(1.0), MEDIAN],
        [MIXING, MEDIAN],
        [MIXING, mean()],
        [clip(1.0), SECRET, mean()],
    ],
)
def test_a_chain_that_has_a_type(stages: list[Stage]) -> None:
    check_chain(stages)


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ([SECRET, MEDIAN], "median sees single updates, and after secure sum there is nothing but"),
        ([SUM, clip(1.0)], "clip sees single updates, and after a sum"),
        ([MIXING, clip(1.0), mean()], "mixing has taken all of them together: put clip before it"),
        ([MEDIAN, mean()], "median has made one update of all: mean cannot follow it"),
        ([clip(1.0)], "clip leaves no single update: end with a mean, or a rule"),
    ],
)
def test_a_chain_that_has_none_is_refused_with_the_reason(
    stages: list[Stage], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        check_chain([*stages])


@pytest.mark.parametrize(
    ("stages", "sampling", "sentence"),
    [
        ([NOISE, mean()], "poisson", "nothing before it clips: put a clip before the sum"),
        ([clip(1.0), NOISE, mean()], "uniform", "sampling is uniform: use .* poisson"),
        ([clip(1.0), MIXING, NOISE, mean()], "poisson", "no bound is known for what mixing"),
    ],
)
def test_noise_whose_privacy_nobody_could_tell_is_refused(
    stages: list[Stage], sampling: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        check_chain(stages, sampling)
    check_chain([clip(1.0), NOISE, mean()], "poisson")


def test_rules_that_count_alike_want_equal_weights() -> None:
    with pytest.raises(UserError, match="median counts clients alike.*weighting uniform"):
        check_chain([MEDIAN], weighting="examples")


def test_clipping_keeps_the_direction_and_what_is_small() -> None:
    norm = np.sqrt(sum((leaf**2).sum() for leaf in UPDATE.values()))
    for bound in (0.5, 2 * norm):
        got, _ = clip(bound).apply(UPDATE, (), ROUND)
        for name, leaf in UPDATE.items():
            np.testing.assert_allclose(got[name], min(1, bound / norm) * leaf, rtol=1e-6)
    zero, _ = clip(1.0).apply(jax.tree.map(np.zeros_like, UPDATE), (), ROUND)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(zero))


def test_codes_are_what_is_read_and_what_is_counted() -> None:
    """int8: 255 levels between ±max of an array, a byte each and 4 for the scale. Signs: one size,
    eight to a byte; five numbers make no bytes, and go as they are."""
    got, _ = coded("int8", CODECS["int8"]()).apply(UPDATE, (), ROUND)
    for name, leaf in UPDATE.items():
        scale = np.abs(leaf).max() / 127
        np.testing.assert_allclose(got[name], scale * np.round(leaf / scale), atol=1e-6)
    assert coded("int8", CODECS["int8"]()).sent(UPDATE) == 16 * 24 + 4 + 5 + 4  # type: ignore
    got, _ = coded("sign", CODECS["sign"]()).apply(UPDATE, (), ROUND)
    w = UPDATE["w"]
    np.testing.assert_allclose(got["w"], np.abs(w).mean() * np.where(w >= 0, 1, -1), rtol=1e-5)
    np.testing.assert_array_equal(got["b"], UPDATE["b"])
    assert coded("sign", CODECS["sign"]()).sent(UPDATE) == 16 * 24 // 8 + 4 + 5 * 4  # type: ignore


def test_the_largest_entries_of_every_array() -> None:
    stage = largest(0.1)
    got, _ = stage.apply(UPDATE, (), ROUND)
    for name, leaf in UPDATE.items():
        count = max(1, round(0.1 * leaf.size))
        least = np.sort(np.abs(leaf).ravel())[-count]
        np.testing.assert_array_equal(got[name], np.where(np.abs(leaf) >= least, leaf, 0))
    assert stage.sent is not None and stage.sent(UPDATE) == 8 * (38 + 1)
