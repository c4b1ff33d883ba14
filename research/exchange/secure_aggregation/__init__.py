"""A sum of which nobody sees the summands: Bonawitz et al. 2017, on the graph of Bell et al. 2020.

`FixedPoint` turns numbers into the ring of integers modulo 2^32 and back, alike in the protocol and
(`fixed_point_spmd`) in a compiled program.
"""

from research.exchange.secure_aggregation.errors import (
    NotFinite,
    OutOfRange,
    RingOverflow,
)
from research.exchange.secure_aggregation.fixed_point import FixedPoint

__all__ = ["FixedPoint", "NotFinite", "OutOfRange", "RingOverflow"]
