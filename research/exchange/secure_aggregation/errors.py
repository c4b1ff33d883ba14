"""Why a secure sum is refused, one class a reason; every message is a sentence.

`UserError`s are of what was asked for, before anything is sent. `Refused` is what a client or the
server answers to a message; who refuses has sent nothing, and a client that has refused once takes
no further part in the round.
"""

from research.errors import RunError, UserError

# Of what was asked for ----------------------------------------------------------------------------


class CohortTooSmall(UserError):
    """So few clients that their sum says what one of them sent."""


class ThresholdTooLow(UserError):
    """So few shares give away a secret that two disjoint groups could give away both of a client's,
    or so few clients are a quorum that there can be two."""


class ThresholdTooHigh(UserError):
    """More shares or clients are asked for than there are."""


class RingOverflow(UserError):
    """A sum of so many values of so many bits may not fit into the ring."""


# Of what a client would add -----------------------------------------------------------------------


class NotFinite(RunError):
    """A value is NaN or infinite, and has no place in the ring."""


class OutOfRange(RunError):
    """A value is larger than the codec was told: it is refused, never cut or wrapped silently."""


# Of a message -------------------------------------------------------------------------------------


class Refused(RunError):
    """A message that was not answered."""


class MalformedMessage(Refused):
    """Bytes that are no message."""


class WrongRound(Refused):
    """A message of another round, or of one with other settings."""


class WrongStage(Refused):
    """A message that does not belong here: too early, too late, or once too often."""


class SecondUnmasking(WrongStage):
    """A client was asked again after it had given its shares away."""


class DuplicateMessage(Refused):
    """A client answered twice."""


class UnknownClient(Refused):
    """A message from, or about, somebody who is not part of this."""


class TooFew(Refused):
    """Fewer clients are left than the sum needs to hide each of them, or to be put together."""


class ForgedKeys(Refused):
    """Keys that their owner did not sign, or that are none."""


class ReusedKeys(Refused):
    """One key stands twice in the list."""


class ForgedShares(Refused):
    """Shares that were not sealed by their sender for this receiver in this round."""


class MissingShares(Refused):
    """Shares that ought to be there are not, or some that ought not to be are."""


class WrongShares(Refused):
    """Shares from which no secret comes out, or another one than was shared."""


class BothShares(Refused):
    """A client was asked for both kinds of shares of a peer, which would unmask it."""


class ViewsDiffer(Refused):
    """Clients were told different things about who takes part."""
