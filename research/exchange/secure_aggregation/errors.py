"""Why a secure sum is refused, one class a reason; every message is a sentence."""

from research.errors import RunError, UserError

# Of what was asked for ----------------------------------------------------------------------------


class RingOverflow(UserError):
    """A sum of so many values of so many bits may not fit into the ring."""


# Of what a client would add -----------------------------------------------------------------------


class NotFinite(RunError):
    """A value is NaN or infinite, and has no place in the ring."""


class OutOfRange(RunError):
    """A value is larger than the codec was told: it is refused, never cut or wrapped silently."""
