"""The codec: exact in the ring, alike in NumPy and XLA, and loud at its limits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.errors import UserError
from research.exchange import Replicas
from research.exchange.secure_aggregation import FixedPoint, NotFinite, OutOfRange, RingOverflow
from research.exchange.secure_aggregation import fixed_point_spmd as spmd


@given(
    bits=st.integers(2, 31),
    limit=st.floats(1e-6, 1e6),
    parts=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40),
)
def test_sums_are_those_of_integers_and_off_by_half_a_step_each(
    bits: int, limit: float, parts: list[float]
) -> None:
    """Beside Python's integers, which do not wrap."""
    codec = FixedPoint(limit, bits)
    values = (np.float32(limit) * np.float32(parts)).astype(np.float32)
    values = values[np.abs(values) <= codec.bound][: codec.room()]
    by_hand = sum(round(float(x) * codec.scale) for x in values)
    total = codec.encode(values).sum(dtype=np.uint32)
    assert codec.decode(total) == by_hand / codec.scale
    exact = sum(map(float, values))
    assert abs(codec.decode(total) - exact) <= len(values) / (2 * codec.scale) + 1e-9 * limit


def test_the_scale_is_the_largest_power_of_two_that_keeps_the_bits() -> None:
    codec = FixedPoint(limit=1.0, bits=8)  # 127 steps
    assert (codec.scale, codec.largest) == (64, 127)
    assert FixedPoint(limit=127.0, bits=8).scale == 1
    assert FixedPoint(limit=128.0, bits=8).scale == 0.5
    np.testing.assert_array_equal(codec.encode([1, -1, 0.5 / 64, 1.5 / 64]), [64, 2**32 - 64, 0, 2])
    assert codec.decode(np.uint32(2**32 - 64)) == -1


@pytest.mark.parametrize("count, bits", [(2, 31), (1024, 22), (1000, 22), (1, 31), (16384, 18)])
def test_bits_and_the_logarithm_of_the_count_may_be_32(count: int, bits: int) -> None:
    FixedPoint(1.0, bits).check(count)
    if bits < 31:
        with pytest.raises(RingOverflow, match=f"{count} values of {bits + 1} bits .* {bits} bits"):
            FixedPoint(1.0, bits + 1).check(count)


@given(bits=st.integers(2, 31), limit=st.floats(1e-6, 1e6))
def test_the_limit_itself_has_a_place_and_what_follows_it_has_none(bits: int, limit: float) -> None:
    codec = FixedPoint(limit, bits)
    assert 0.49 * codec.largest <= int(codec.encode(codec.bound)) <= codec.largest
    with pytest.raises(OutOfRange):
        codec.encode(np.nextafter(codec.bound, np.float32(np.inf)))


def test_noise_takes_room() -> None:
    codec = FixedPoint(1.0, 22)
    codec.check(1000, noise=1e5)
    with pytest.raises(RingOverflow, match="beside noise of 1e\\+07 steps"):
        codec.check(1000, noise=1e7)
    assert codec.room(noise=1e10) == 0


def test_the_largest_sum_does_not_wrap_and_one_more_would() -> None:
    codec = FixedPoint(limit=127.0, bits=8)
    room = codec.room()
    total = np.uint32(codec.encode(np.float32(127)) * np.uint32(room))
    assert codec.decode(total) == 127 * room
    assert codec.decode(total + codec.encode(np.float32(127))) < 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(NotFinite, match="1 of 3 values are not finite"):
        FixedPoint(1.0).encode([0, bad, 1])


def test_what_is_too_large_is_refused_with_the_number() -> None:
    with pytest.raises(OutOfRange, match="2 of 3 values are beyond ±1, the largest 3"):
        FixedPoint(1.0).encode([0, -1.5, 3])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((1.0, 1), "take 2 to 31"),
        ((1.0, 32), "take 2 to 31"),
        ((0.0,), "finite one above 0"),
        ((np.inf,), "finite one above 0"),
        ((1e-35,), "another unit"),
    ],
)
def test_codecs_that_cannot_be(arguments: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        FixedPoint(*arguments)


LIE = [Replicas(8), Replicas(4, 2), Replicas(1, 8)]


@pytest.mark.parametrize("replicas", LIE, ids=str)
def test_a_compiled_sum_has_the_bits_of_the_ring(replicas: Replicas, seen: Any) -> None:
    codec = FixedPoint(3.0, 29)
    values = np.random.default_rng(0).uniform(-3, 3, (8, 1000)).astype(np.float32)
    alive = np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)

    def one(number: jax.Array, x: jax.Array, alive: jax.Array) -> Any:
        integers, faults = spmd.encode(codec, x)
        total = spmd.ring_sum(replicas, integers)
        living = spmd.ring_sum(replicas, integers, alive)
        return total, living, spmd.decode(codec, total), faults

    total, living, decoded, faults = seen(one, replicas, values, alive)
    expected = codec.encode(values).sum(0, dtype=np.uint32)
    assert total.dtype == np.uint32
    np.testing.assert_array_equal(total, np.broadcast_to(expected, total.shape))
    of_living = codec.encode(values[alive]).sum(0, dtype=np.uint32)
    np.testing.assert_array_equal(living, np.broadcast_to(of_living, living.shape))
    np.testing.assert_array_equal(decoded[0], codec.decode(expected).astype(np.float32))
    assert not faults.any()


def test_a_compiled_program_counts_what_it_leaves_out() -> None:
    codec = FixedPoint(1.0)
    values = jnp.array([0.5, 2, np.nan, -np.inf, -1])
    integers, faults = jax.jit(lambda x: spmd.encode(codec, x))(values)
    assert faults == 3
    np.testing.assert_array_equal(integers, codec.encode([0.5, 0, 0, 0, -1]))
    with pytest.raises(OutOfRange, match="3 values were not finite or beyond ±1"):
        spmd.check_faults(codec, int(faults))
    spmd.check_faults(codec, 0)
