"""What a secure sum computes: a client's masks beside raw AES and memcpy, the server's unmasking.

    python scripts/benchmarks/secure_aggregation.py [--clients 100] [--size 1000000] [--quick]

Times, in turns and in one process on one CPU,

- one client's masked input: 100 peers, 1,000,000 values, with agreement on 100 secrets and the
  derivation of 101 keys;
- the same bytes of AES-256-CTR written into one buffer that stays in the cache, and of plain copies
  (memcpy): what masks cannot be faster than;
- the server's unmasking of 100 clients of which 10 % dropped out after they had shared their
  secrets: shares put together, 90 masks of survivors and 900 between them and the others.

All on the complete graph, and the sum is checked. Goals: 0.3 s for a client, 5 s for the server, of
one core: where others want it too, CPU seconds are the nearer to that. Under a minute.
"""

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from harness import results, workers

from research.exchange.secure_aggregation import Client, Identity, Round, Server, shamir
from research.exchange.secure_aggregation.masks import BLOCK, Masked
from research.exchange.secure_aggregation.messages import Message

CLIENT_GOAL, SERVER_GOAL = 0.3, 5.0
CLIENT, AES, COPY, SERVER = "a client's masks", "AES-256-CTR", "memcpy", "the server's unmasking"
Block = Callable[[], tuple[list[float], list[float]]]


def main() -> None:
    """Measures, prints a table and writes the result."""
    parser = results.parser(__doc__)
    parser.add_argument("--clients", type=int, default=100, help="of the server (100)")
    parser.add_argument("--peers", type=int, default=100, help="of the one client (100)")
    parser.add_argument("--size", type=int, default=1_000_000, help="values of a client")
    parser.add_argument("--dropout", type=float, default=0.1, help="share that leaves (0.1)")
    parser.add_argument("--rounds", type=int, default=9, help="blocks of every kind (9)")
    options = parser.parse_args()
    if options.quick:
        options.clients, options.peers, options.size, options.rounds = 10, 10, 100_000, 2
    before = results.provenance(threads=1)
    workers.confine(workers.choose_cpus(1))

    values = np.random.default_rng(0).integers(0, 2**32, options.size, dtype=np.uint32)
    client = ready_to_mask(options.peers + 1, values)
    server, expected, seconds = ready_to_unmask(options.clients, options.dropout, values)
    unmasked = unmasking(server)
    np.testing.assert_array_equal(unmasked(), expected)
    streams = options.peers + 1
    blocks: dict[str, Block] = {
        CLIENT: timed(lambda: client._masked(values)),
        AES: timed(lambda: raw_streams(streams, options.size)),
        COPY: timed(copies(streams, options.size)),
        SERVER: timed(unmasked),
    }
    for block in blocks.values():
        block()
    timings = workers.interleave(blocks, options.rounds)

    sides = {name: results.summary(timing) for name, timing in timings.items()}
    moved = 4 * options.size * streams
    rows = []
    for name, side in sides.items():
        wall = side["seconds"]
        cells = [f"{1e3 * wall[part]:.1f}" for part in ("median", "quarter", "three_quarters")]
        speed = "" if name == SERVER else f"{moved / wall['median'] / 1e9:.2f}"
        rows.append([name, *cells, f"{1e3 * side['cpu_seconds']['median']:.1f}", speed])
    header = ["ms", "median", "25 %", "75 %", "CPU", "GB/s"]
    results.table(header, rows)
    ratios = {
        f"to {name}": results.paired_ratio(timings[CLIENT].wall, timings[name].wall)
        for name in (AES, COPY)
    }
    print(", ".join(f"{of}: {ratio['median']:.2f} times" for of, ratio in ratios.items()))
    print(f"a client's part of the server's round, all stages: {seconds:.2f} s")
    for name, goal in ((CLIENT, CLIENT_GOAL), (SERVER, SERVER_GOAL)):
        for of, kind in (("seconds", "wall"), ("cpu_seconds", "CPU")):
            print(results.goal(f"{name}, {kind}", sides[name][of]["median"], goal, " s"))
    result = {
        "benchmark": "secure_aggregation",
        "provenance": {**before, "load_average_after": results.provenance()["load_average"]},
        "clients": options.clients,
        "peers": options.peers,
        "size": options.size,
        "dropout": options.dropout,
        "rounds": options.rounds,
        "bytes_of_masks_of_a_client": moved,
        "seconds_of_a_client_in_all_stages": seconds,
        "sides": sides,
        "ratio_of_a_client_s_masks": ratios,
        "goals": {CLIENT: CLIENT_GOAL, SERVER: SERVER_GOAL},
    }
    results.write("secure_aggregation", result, options)


def begun(count: int, values: np.ndarray) -> tuple[Server, list[Client]]:
    """A server, and clients with the same values."""
    people = [Identity() for _ in range(count)]
    round = Round(tuple(one.public for one in people), len(values), count // 2 + 1)
    return Server(round), [Client(round, n, one, values) for n, one in enumerate(people)]


def stage(server: Server, clients: list[Client], inbox: dict[int, Message] | None) -> None:
    """All that are asked answer, and the server takes it."""
    asked = dict.fromkeys(range(len(clients))) if inbox is None else inbox
    for number, message in asked.items():
        client = clients[number]
        server.receive(client.begin() if message is None else client.receive(message))


def ready_to_mask(count: int, values: np.ndarray) -> Client:
    """A client that has been sent everybody's shares."""
    server, clients = begun(count, values)
    stage(server, clients, None)
    stage(server, clients, server.advance())
    clients[0].receive(server.advance()[0])
    return clients[0]


def ready_to_unmask(
    count: int, dropout: float, values: np.ndarray
) -> tuple[Server, np.ndarray, float]:
    """A server that has all shares, the sum it has to find, and seconds of a client so far."""
    server, clients = begun(count, values)
    began = time.perf_counter()
    stage(server, clients, None)
    inbox = server.advance()
    stage(server, clients, inbox)
    inbox = server.advance()
    gone = set(range(0, count, max(round(1 / dropout), 1))) if dropout else set()
    stage(server, clients, {n: message for n, message in inbox.items() if n not in gone})
    for _ in range(2):
        stage(server, clients, server.advance())
    seconds = (time.perf_counter() - began) / count
    return server, values * np.uint32(count - len(gone)), seconds


def unmasking(server: Server) -> Callable[[], np.ndarray]:
    """What the server does last, as often as one likes."""
    masked = server._sum.total

    def once() -> np.ndarray:
        shamir._weights.cache_clear()
        again = copy.copy(server)
        again._sum = Masked(masked.copy())
        return again.result()

    return once


def raw_streams(count: int, size: int) -> None:
    """So many streams of AES-256-CTR of so many values, block by block into one buffer."""
    zeros, buffer = bytes(4 * BLOCK), bytearray(4 * BLOCK)
    for number in range(count):
        key = number.to_bytes(32, "little")
        stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        for start in range(0, size, BLOCK):
            stream.update_into(zeros[: 4 * min(BLOCK, size - start)], buffer)


def copies(count: int, size: int) -> Callable[[], None]:
    """So many copies of so many values from memory to memory."""
    source, target = np.ones((4, size), np.uint32), np.zeros((4, size), np.uint32)

    def once() -> None:
        for number in range(count):
            np.copyto(target[number % 4], source[number % 4])

    return once


def timed(once: Callable[[], Any]) -> Block:
    """Wall and CPU seconds of one call."""

    def block() -> tuple[list[float], list[float]]:
        began, began_cpu = time.perf_counter(), time.process_time()
        once()
        return [time.perf_counter() - began], [time.process_time() - began_cpu]

    return block


if __name__ == "__main__":
    main()
