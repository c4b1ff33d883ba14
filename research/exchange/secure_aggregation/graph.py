"""Who shares a mask with whom: everybody, or k neighbors on a ring in an order nobody chose.

Bell, Bonawitz, Gascón, Lepoint, Raykova 2020, *Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead*, CCS, eprint 2020/704, §3 (Alg. 2, Harary(n, k) after a random
permutation of the clients): client i has as neighbors the k/2 before and the k/2 behind it. Masks,
shares and work of a client are then k and not n - 1.

In the paper the server draws the permutation, which is enough where it follows the protocol. Here
every client draws it for itself, as the order of SHA-256(seed, client), where the seed is a digest
of all keys that were advertised. The price is that everybody reads all of them, 132 bytes a client.
A server that controls clients could still try many keys until it likes the graph, so against an
active server that has accomplices, take the complete graph.

What has to hold but for chance 2^-σ, with a share γ of clients corrupt and δ dropping out, and
shares held by a client and its k neighbors, t of which give a secret (the paper's defs. 3.1 to 3.3;
the tails are hypergeometric, and a union bound is taken over the clients):

    no client has t corrupt neighbors          n · P[Hyp(n - 1, γ·n, k) ≥ t]          ≤ 2^-σ
    honest survivors are connected             n · (γ + δ)^(k/2)                      ≤ 2^-σ
    t neighbors of every client survive        n · P[Hyp(n - 1, (1 - δ)·n, k) < t]    ≤ 2^-η
"""

import math
from collections.abc import Sequence

from research.errors import UserError
from research.exchange.secure_aggregation.keys import digest


def neighbors_of(clients: Sequence[int], count: int, seed: bytes) -> dict[int, tuple[int, ...]]:
    """The neighbors of every client, in ascending order: `count` (even) of them, or all others
    where there are no more than that."""
    if count >= len(clients) - 1:
        return {one: tuple(sorted(set(clients) - {one})) for one in clients}
    order = sorted(clients, key=lambda client: digest(seed, client.to_bytes(4, "little")))
    distances = [*range(-(count // 2), 0), *range(1, count // 2 + 1)]
    return {
        one: tuple(sorted(order[(place + distance) % len(order)] for distance in distances))
        for place, one in enumerate(order)
    }


def degree(
    clients: int, corrupt: float, dropout: float, security: int = 40, correctness: int = 30
) -> tuple[int, int]:
    """The fewest neighbors k, and the smallest threshold t, with which the three conditions hold.

    `corrupt` and `dropout` are shares of the clients (γ, δ), `security` and `correctness` σ and η.

    Raises UserError where only the complete graph would do, or nothing.
    """
    bad, lost = (math.ceil(share * clients) for share in (corrupt, dropout))
    for k in range(2, clients - 1, 2):
        isolated = math.log2(clients) + k / 2 * math.log2(max(corrupt + dropout, 1e-300))
        if isolated > -security:
            continue
        unmasked, short = (_tails(clients - 1, marked, k) for marked in (bad, lost))
        for t in range(k // 2 + 1, k + 1):
            if short[k - t + 1] * clients > 2.0**-correctness:
                break  # and so for every larger t
            if unmasked[t] * clients <= 2.0**-security:
                return k, t
    raise UserError(
        f"no graph of fewer neighbors than all holds for {clients} clients of which "
        f"{corrupt:.0%} are corrupt and {dropout:.0%} drop out: take the complete one"
    )


def _tails(population: int, marked: int, drawn: int) -> list[float]:
    """P[Hyp ≥ i], that at least i marked ones are among those drawn, for i = 0 ... drawn."""

    def log_ways(many: int, few: int) -> float:
        return math.lgamma(many + 1) - math.lgamma(few + 1) - math.lgamma(many - few + 1)

    tail, tails = 0.0, []
    for hits in range(drawn, -1, -1):
        if hits <= marked and drawn - hits <= population - marked:
            ways = log_ways(marked, hits) + log_ways(population - marked, drawn - hits)
            tail += math.exp(ways - log_ways(population, drawn))
        tails.append(tail)
    return tails[::-1]
