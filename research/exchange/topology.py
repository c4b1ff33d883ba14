"""Who sends to whom among n replicas that have no center: graphs, and how fast they mix.

Every graph here looks alike from every replica: it sends to those `offsets` places on round a ring
of all n, with equal weights, W = 1/(k+1) · Σ of shifts by 0 and the k offsets. So W is doubly
stochastic (it keeps the mean), its eigenvalues are the Fourier transform of its first row, and the
spectral gap 1 - max_{j>0} |λ_j| says how fast replicas agree: 1 at once, 0 never.

    ring           ±1                          n large: gap ≈ 4π²/3n²
    torus          ±1, ±w, w a factor near √n   (twisted: a row ends where the next one begins)
    exponential    1, 2, 4, ... < n             Assran et al. 2019, arXiv:1811.10792
    complete       all                         gap 1: the mean
"""

import math

import numpy as np

from research.errors import UserError

GRAPHS = ("ring", "torus", "exponential", "complete")


def offsets(graph: str, count: int) -> list[int]:
    """How far each of `count` replicas sends, besides to itself: different, from 1 to count - 1."""
    if graph == "ring":
        wanted = [1, -1]
    elif graph == "torus":
        width = max(w for w in range(1, math.isqrt(count) + 1) if count % w == 0)
        wanted = [1, -1, width, -width]
    elif graph == "exponential":
        wanted = [1 << power for power in range(max(count - 1, 0).bit_length())]
    else:
        wanted = list(range(1, count))
    return sorted({offset % count for offset in wanted} - {0})


def mixing_matrix(offsets: list[int], count: int) -> np.ndarray:
    """W [to, from], float64."""
    row = np.zeros(count)
    row[0] = 1
    for offset in offsets:
        row[offset] += 1
    row /= row.sum()
    return np.stack(
        [[row[(to - sender) % count] for sender in range(count)] for to in range(count)]
    )


def spectral_gap(offsets: list[int], count: int) -> float:
    """1 - the second largest modulus of W's eigenvalues."""
    if count == 1:
        return 1.0
    moduli = np.abs(np.fft.fft(mixing_matrix(offsets, count)[:, 0]))
    return float(1 - np.max(moduli[1:]))


def check_connected(offsets: list[int], count: int) -> None:
    """Raises UserError where some replicas never hear of others: a gap of 0."""
    common = math.gcd(count, *offsets)
    if common > 1:
        raise UserError(
            f"offsets {', '.join(map(str, offsets))} among {count} replicas make {common} groups "
            f"that never hear of each other: add an offset that {common} does not divide, such as 1"
        )
