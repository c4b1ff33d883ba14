"""Which examples make the batch of a step: a pure function of (seed, step).

The shuffle is a permutation that is computed, not stored: the place of any example in any epoch is
had in a few microseconds, with nothing to keep or to checkpoint. It is the generalized Feistel
cipher of Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains" (CT-RSA): an index is
written as `(left, right)` in `a × b >= n`, rounds add to each half, modulo its size, a hash of the
other, and what falls outside of the `n` examples is enciphered again. (grain's own `index_shuffle`
walks a block of at least 2^16 places: about 0.1 ms an index for a set of 1,400 examples.)
"""

import hashlib
import math
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache

import numpy as np

from research.data.dataset import Example, Source, read_rows
from research.errors import UserError

ROUNDS = 8
PREFETCHED_STEPS = 8


class Batches:
    """Training batches without end: every epoch a new shuffle, every step a place in it.

    The examples of all epochs stand in one line, epoch after epoch; step `s` takes places
    `s * batch` to `(s + 1) * batch`. So no example is dropped where the batch does not divide the
    epoch, and a batch may hold the end of one epoch and the beginning of the next. Nothing here
    depends on how many hosts read: each asks for its rows.
    """

    def __init__(self, source: Source, batch: int, seed: int):
        """`batch` examples a step, over all hosts; raises `UserError` if there are fewer."""
        if batch < 1:
            raise UserError(f"a batch of {batch} examples cannot be: set --data.batch 1 or more")
        if batch > len(source):
            raise UserError(
                f"batch {batch} is more than the {len(source)} training examples there are: "
                f"set --data.batch {len(source)} or less, or train on more data"
            )
        self.source = source
        self.batch = batch
        self.seed = seed

    @property
    def examples(self) -> int:
        """Of a step."""
        return self.batch

    def indexes(self, step: int) -> np.ndarray:
        """int64 `[batch]`: the example of each row of the batch of `step` (from 0)."""
        return self._examples(step, np.arange(self.batch))

    def rows(self, step: int, rows: Sequence[int] | np.ndarray) -> Example:
        """Reads only those rows of the batch of `step`; every leaf is `[len(rows), ...]`."""
        return read_rows(self.source, self._examples(step, np.asarray(rows, np.int64)))

    def iterate(
        self, start: int, rows: Sequence[int] | np.ndarray
    ) -> Generator[Example, None, None]:
        """The given rows of the batches of `start`, `start + 1`, ..., read ahead by a thread.

        Closing the iterator, or dropping it, ends the thread.
        """
        rows = np.asarray(rows, np.int64)
        return read_ahead(lambda step: self.rows(step, rows), start, PREFETCHED_STEPS)

    def _examples(self, step: int, rows: np.ndarray) -> np.ndarray:
        if step < 0:
            raise ValueError(f"step {step} is negative")
        examples = len(self.source)
        epochs, places = np.divmod(step * self.batch + rows, examples)
        indexes = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indexes[here] = shuffled(places[here], examples, self.seed, int(epoch))
        return indexes


def read_ahead(
    read: Callable[[int], Example], start: int, ahead: int
) -> Generator[Example, None, None]:
    """`read(start)`, `read(start + 1)`, ..., up to `ahead` of them before they are asked for.

    One reading thread: the sources are in memory, and more would only wait for each other.
    """
    import grain  # more than a second to import: only what reads ahead pays for it

    steps = grain.MapDataset.range(start, sys.maxsize).map(read)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
    prefetched = iter(steps.to_iter_dataset(options))
    try:
        yield from prefetched
    finally:
        prefetched.close()


def evaluation_batches(
    source: Source, batch: int, rows: Sequence[int] | np.ndarray, limit: int = 0
) -> Iterator[Example]:
    """Every example once, in order, in batches of one size.

    Yields the given rows of each batch, every leaf `[len(rows), ...]`, with one more leaf
    `weights`, float32 `[len(rows)]`: 1 for an example, 0 for what pads the last batch. `limit`,
    in batches, takes no more than `limit * batch` examples, spread evenly over the source (the
    first ones alone would be one file of a corpus); 0 takes all.
    """
    if batch < 1:
        raise UserError(f"a batch of {batch} examples cannot be: set --data.batch 1 or more")
    chosen = evaluated_examples(len(source), batch, limit)
    rows = np.asarray(rows, np.int64)
    for start in range(0, len(chosen), batch):
        places = start + rows
        weights = (places < len(chosen)).astype(np.float32)
        examples = read_rows(source, chosen[np.minimum(places, len(chosen) - 1)])
        yield {**examples, "weights": weights}


def evaluated_examples(count: int, batch: int, limit: int = 0) -> np.ndarray:
    """int64 `[examples]`, ascending: those of `count` that `evaluation_batches` goes through."""
    if limit and limit * batch < count:
        # [limit * batch], strictly increasing since the step between two is more than 1
        return np.arange(limit * batch) * count // (limit * batch)
    return np.arange(count)


def shuffled(places: np.ndarray, examples: int, seed: int, epoch: int) -> np.ndarray:
    """int64 `[...]`: which of the `examples` stand at those places in the shuffle of an epoch.

    For one (seed, epoch) a permutation of 0 to `examples - 1`. Over epochs, each example is as
    likely at each place as chance has it from 10 examples on, and within 3 % of it at 5.
    """
    left_size = math.isqrt(examples - 1) + 1
    right_size = -(-examples // left_size)
    keys = _keys(seed, epoch)
    indexes = _encipher(places, left_size, right_size, keys)
    # left_size * right_size < examples + left_size: few need another walk, and few walks do.
    while (outside := indexes >= examples).any():
        indexes[outside] = _encipher(indexes[outside], left_size, right_size, keys)
    return indexes


def _encipher(indexes: np.ndarray, left_size: int, right_size: int, keys: np.ndarray) -> np.ndarray:
    left, right = np.divmod(indexes.astype(np.uint64), np.uint64(right_size))
    for turn in range(0, ROUNDS, 2):
        left = (left + _hash(right + keys[turn])) % np.uint64(left_size)
        right = (right + _hash(left + keys[turn + 1])) % np.uint64(right_size)
    return (left * np.uint64(right_size) + right).astype(np.int64)


def _hash(values: np.ndarray) -> np.ndarray:
    """32 bits out of 64, by multiply, shift, multiply; overwrites `values`.

    The shift between the two is what keeps a round from being affine. The odd factors are those
    of SplitMix64 (Steele, Lea and Flood 2014).
    """
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(32)
    values *= np.uint64(0x94D049BB133111EB)
    values >>= np.uint64(32)
    return values


@lru_cache(maxsize=256)
def _keys(seed: int, epoch: int) -> np.ndarray:
    """uint64 `[ROUNDS]`, unrelated for neighboring seeds and epochs."""
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, "<u8").astype(np.uint64)
