"""Masks: a seed stretched over the ring, added to a sum at the speed of memory.

Bonawitz et al. 2017, eprint 2017/281, §3.3 (PRG): AES-256 in counter mode, whose stream is read as
little-endian integers of 32 bits, uniform modulo 2^32. A seed is the key and is used for one mask
only, so the counter begins at 0. The stream is written block by block into one buffer that stays in
the cache, and is added from there; no mask is ever held whole.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

BLOCK = 2**14
"""Values of a block: 64 KB, of which two (what is encrypted, and the stream) stay in the cache."""

_ZEROS = bytes(4 * BLOCK)
_COUNTER = bytes(16)


class Masked:
    """A sum modulo 2^32 (uint32 [size], changed in place) and the masks in it."""

    def __init__(self, total: np.ndarray):
        self.total = total
        self._buffer = bytearray(4 * BLOCK)
        self._stream = np.frombuffer(self._buffer, "<u4")

    def add(self, seed: bytes) -> None:
        """Adds the mask of `seed` (32 bytes)."""
        self._apply(seed, np.add)

    def subtract(self, seed: bytes) -> None:
        """Takes away the mask of `seed` (32 bytes)."""
        self._apply(seed, np.subtract)

    def _apply(self, seed: bytes, operation: np.ufunc) -> None:
        stream = Cipher(algorithms.AES256(seed), modes.CTR(_COUNTER)).encryptor()
        for start in range(0, len(self.total), BLOCK):
            part = self.total[start : start + BLOCK]
            zeros = _ZEROS if len(part) == BLOCK else bytes(4 * len(part))
            stream.update_into(zeros, self._buffer)
            operation(part, self._stream[: len(part)], out=part)
