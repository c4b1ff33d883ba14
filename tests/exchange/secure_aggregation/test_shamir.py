"""Shares against independent arithmetic; too few say nothing."""

import contextlib
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.exchange.secure_aggregation import WrongShares
from research.exchange.secure_aggregation.shamir import PRIME, reconstruct, share

SECRETS = st.binary(min_size=32, max_size=32)


def solved(points: dict[int, int]) -> list[int]:
    """Coefficients of the polynomial through `points`, by elimination in its Vandermonde matrix."""
    rows = [[pow(x, i, PRIME) for i in range(len(points))] + [y] for x, y in points.items()]
    size = len(rows)
    for i in range(size):
        pivot = next(r for r in range(i, size) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        inverse = pow(rows[i][i], PRIME - 2, PRIME)  # Fermat
        rows[i] = [value * inverse % PRIME for value in rows[i]]
        for r in range(size):
            if r != i:
                factor = rows[r][i]
                pairs = zip(rows[r], rows[i], strict=True)
                rows[r] = [(a - factor * b) % PRIME for a, b in pairs]
    return [row[-1] for row in rows]


def numbers(shares: dict[int, bytes]) -> dict[int, int]:
    """{point: value}"""
    return {holder + 1: int.from_bytes(text, "little") for holder, text in shares.items()}


def test_the_field_is_one_and_holds_32_bytes() -> None:
    """By 40 rounds of Miller and Rabin; and no smaller number above 2^256 passes."""

    def probably_prime(number: int) -> bool:
        odd, twos = number - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for _ in range(40):
            x = pow(secrets.randbelow(number - 3) + 2, odd, number)
            passes = x in (1, number - 1) or any(
                (x := x * x % number) == number - 1 for _ in range(twos - 1)
            )
            if not passes:
                return False
        return True

    assert PRIME == 2**256 + 297 and probably_prime(PRIME)
    assert not any(probably_prime(number) for number in range(2**256, PRIME))


@given(secret=SECRETS, data=st.data(), count=st.integers(1, 8))
def test_any_t_of_n_give_the_secret(secret: bytes, data: st.DataObject, count: int) -> None:
    threshold = data.draw(st.integers(1, count))
    shares = share(secret, threshold, range(count))
    chosen = data.draw(st.permutations(range(count)))[:threshold]
    some = {holder: shares[holder] for holder in chosen}
    assert reconstruct(some, threshold) == secret
    coefficients = solved(numbers(some))
    assert coefficients[0].to_bytes(33, "little")[:32] == secret
    # All shares lie on that polynomial, whose degree is below t.
    for point, value in numbers(shares).items():
        assert sum(a * point**i for i, a in enumerate(coefficients)) % PRIME == value


@given(secret=SECRETS, other=SECRETS)
def test_one_share_too_few_fits_any_secret_equally(secret: bytes, other: bytes) -> None:
    """Through t - 1 shares and any value at 0 goes exactly one polynomial."""
    shares = share(secret, 4, range(7))
    some = numbers({holder: shares[holder] for holder in (1, 3, 6)})
    through = solved({0: int.from_bytes(other, "little"), **some})
    assert all(
        sum(a * point**i for i, a in enumerate(through)) % PRIME == value
        for point, value in some.items()
    )
    assert through[0].to_bytes(33, "little")[:32] == other


def test_shares_are_uniform_in_the_field() -> None:
    """Of one secret, 4,000 first bytes: chi-squared of 255 degrees below its 1 - 1e-6 quantile."""
    counts = [0] * 256
    for _ in range(4000):
        counts[share(bytes(32), 2, [0])[0][7]] += 1
    statistic = sum((seen - 4000 / 256) ** 2 / (4000 / 256) for seen in counts)
    assert statistic < 378


def test_wrong_shares_are_told_or_give_another_secret() -> None:
    secret = secrets.token_bytes(32)
    shares = share(secret, 3, range(5))
    with pytest.raises(WrongShares, match="2 shares of a secret that takes 3"):
        reconstruct({0: shares[0], 1: shares[1]}, 3)
    with pytest.raises(WrongShares, match="no number below"):
        reconstruct({**shares, 0: b"\xff" * 33}, 3)
    swapped = {**shares, 0: shares[1], 1: shares[0]}
    with contextlib.suppress(WrongShares):  # 297 numbers of the field are no 32 bytes
        assert reconstruct(swapped, 3) != secret


def test_a_secret_of_another_length_is_not_shared() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        share(bytes(31), 2, range(3))
