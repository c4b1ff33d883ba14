"""Secure aggregation (Bonawitz et al. 2017): traffic over that in the clear, and seconds.

    research reproduce secure_aggregation_2017

Bytes are counted, by the paper's sizes and by those of the messages here, which a round that is
played confirms; seconds are CPU time of such rounds, all of whose clients are in one process.
"""

import math
import statistics

import numpy as np
from matplotlib.axes import Axes

from research.exchange.secure_aggregation import Identity, Outcome, Round, simulate
from research.experiment import Experiment
from research.reproduction import Measurement, Reproduction, Results

INPUT_BITS = 16
KEY_BITS = SHARE_BITS = 256  # the paper's
SIZES = ((10, 20), (14, 24))  # binary logarithms of clients and values, in the abstract
VALUES = 100_000


def variants(quick: bool) -> dict[str, Experiment]:
    """Nothing is learned."""
    FORM["clients"] = (10,) if quick else (50, 100)
    return {}


FORM: dict[str, tuple[int, ...]] = {}


def in_the_clear(values: int) -> float:
    """Bytes of a client that sends its values."""
    return values * INPUT_BITS / 8


def by_the_paper_s_sizes(clients: int, values: int) -> float:
    """Bytes that a client sends and is sent: 2 keys to everybody and of everybody; 2 shares to and
    of all others, and one of everybody at the end; and values that hold the sum."""
    keys, shares = 2 * clients, 5 * clients - 4
    ring = INPUT_BITS + math.ceil(math.log2(clients))
    return (keys * KEY_BITS + shares * SHARE_BITS + values * ring) / 8


def by_our_messages(clients: int, values: int) -> int:
    """Bytes of all messages of a client on the complete graph, if nobody drops out: every one has
    33 for kind and round, a number 4, a key 32, a signature 64, a share 33, a seal 16."""
    sealed = (clients - 1) * (4 + 4 + 4 + 2 * 33 + 16)
    sent = [
        4 + 32 + 32 + 64,
        4 + 32 + 4 + sealed,
        4 + 4 + 4 * values,
        4 + 64,
        4 + 4 + 4 + clients * (4 + 33),
    ]
    received = [
        4 + clients * (4 + 32 + 32 + 64),
        4 + 4 * clients + 4 + sealed,
        4 + 4 * clients + 4,
        4 + clients * (4 + 64),
    ]
    return sum(33 + size for size in sent + received)


def played(clients: int, dropout: float) -> Outcome:
    """A round with t = 2/3 of the clients, of whom some are gone after they shared."""
    people = [Identity() for _ in range(clients)]
    round = Round(tuple(one.public for one in people), VALUES, 2 * clients // 3 + 1)
    values = np.random.default_rng(0).integers(0, 2**32, (clients, VALUES), dtype=np.uint32)
    gone = range(round_down(dropout * clients))
    outcome = simulate(round, people, values, dict.fromkeys(gone, 2))
    expected = values[len(gone) :].sum(0, dtype=np.uint32)
    np.testing.assert_array_equal(outcome.total, expected)
    return outcome


def round_down(number: float) -> int:
    """Whole clients."""
    return math.floor(number + 1e-9)


def measure(results: Results) -> list[Measurement]:
    """Expansions by the sizes; seconds by rounds."""
    rows = []
    for clients, values in SIZES:
        n, m = 2**clients, 2**values
        name = f"expansion, 2^{clients} clients, 2^{values} values"
        ours = by_the_paper_s_sizes(n, m) / in_the_clear(m)
        rows.append(Measurement(name, ours, "×", tolerance=0.005))
    for clients, values in SIZES:
        n, m = 2**clients, 2**values
        name = f"of our messages, 2^{clients} clients, 2^{values} values"
        rows.append(Measurement(name, by_our_messages(n, m) / in_the_clear(m), "×"))
    for clients in FORM["clients"]:
        for dropout in (0.0, 0.1, 0.3):
            outcome = played(clients, dropout)
            last = clients - 1
            if not dropout:
                counted = sum(outcome.sent[last]) + sum(outcome.received[last])
                assert counted == by_our_messages(clients, VALUES)
            stayed = [outcome.client_seconds[one] for one in outcome.survivors]
            what = f"{clients} clients, {dropout:.0%} gone"
            client, server = statistics.median(stayed), outcome.server_seconds
            rows += [
                Measurement(f"client, {what}", 1e3 * client, "ms of CPU"),
                Measurement(f"server, {what}", 1e3 * server, "ms of CPU"),
            ]
    return rows


def draw(axes: Axes, results: Results) -> None:
    """Expansion over the number of clients."""
    clients = [2**power for power in range(4, 15)]
    for (_, values), color in zip(SIZES, ("tab:blue", "tab:orange"), strict=True):
        clear = in_the_clear(2**values)
        for of, style, whose in (
            (by_the_paper_s_sizes, "--", "the paper's sizes"),
            (by_our_messages, "-", "our messages"),
        ):
            expansions = [of(n, 2**values) / clear for n in clients]
            label = f"2^{values} values, {whose}"
            axes.plot(clients, expansions, style, color=color, label=label)
    for (power, _), told in zip(SIZES, (1.73, 1.98), strict=True):
        axes.plot(2**power, told, "ko", label="the paper" if power == SIZES[0][0] else None)
    axes.set_xscale("log", base=2)
    axes.set_ylim(1, 4)
    axes.set_xlabel("clients")
    axes.set_ylabel("bytes of a client, of 16-bit values in the clear")
    axes.legend()


reproduction = Reproduction(variants, seeds=(0,), measure=measure, draw=draw)
