"""What clients and the server send each other, and its bytes.

    stage                from a client     from the server, when enough have answered
    0  AdvertiseKeys     Keys              KeyList          everybody's keys
    1  ShareKeys         SharedSecrets     Delivery         what others sealed for one
    2  MaskedInput       MaskedInput       Survivors        whose input is there, and whose is not
    3  ConsistencyCheck  Confirmation      Confirmations    who signed that
    4  Unmasking         Shares            -                (the sum)

A message is a byte that says which, and its fields (see `encoding`).
"""

from dataclasses import dataclass
from typing import Annotated

from research.exchange.secure_aggregation.encoding import read, written
from research.exchange.secure_aggregation.errors import MalformedMessage

Digest = Annotated[bytes, 32]
Key = Annotated[bytes, 32]
Signature = Annotated[bytes, 64]
ShareBytes = Annotated[bytes, 33]


@dataclass(frozen=True)
class Message:
    """Every message says which round it belongs to."""

    round: Digest


@dataclass(frozen=True)
class PublicKeys:
    """A client's public keys of this round, signed by its identity."""

    client: int
    sealing: Key  # c^PK
    masking: Key  # s^PK
    signature: Signature


@dataclass(frozen=True)
class Keys(Message):
    """What a client advertises."""

    keys: PublicKeys

    @property
    def client(self) -> int:
        return self.keys.client


@dataclass(frozen=True)
class KeyList(Message):
    """The keys of all who take part (U1), by client."""

    keys: tuple[PublicKeys, ...]


@dataclass(frozen=True)
class Sealed:
    """Shares of both secrets of `sender` that only `receiver` can read."""

    sender: int
    receiver: int
    text: bytes  # e_{u,v}


@dataclass(frozen=True)
class SharedSecrets(Message):
    """A client's shares for its neighbors, and a commitment to its own mask."""

    client: int
    commitment: Digest
    shares: tuple[Sealed, ...]


@dataclass(frozen=True)
class Delivery(Message):
    """Who shared secrets (U2), and the shares for one of them from its neighbors."""

    sharers: tuple[int, ...]
    shares: tuple[Sealed, ...]


@dataclass(frozen=True)
class MaskedInput(Message):
    """A client's values under its masks: uint32, little-endian."""

    client: int
    values: bytes  # y_u


@dataclass(frozen=True)
class Survivors(Message):
    """Whose masked input came (U3), and whose did not (U2 without U3)."""

    survivors: tuple[int, ...]
    dropped: tuple[int, ...]


@dataclass(frozen=True)
class Signed:
    """A client's signature of all that it was told."""

    client: int
    signature: Signature


@dataclass(frozen=True)
class Confirmation(Message):
    """That a client signs."""

    signed: Signed

    @property
    def client(self) -> int:
        return self.signed.client


@dataclass(frozen=True)
class Confirmations(Message):
    """The signatures of all who confirmed (U4), by client."""

    signed: tuple[Signed, ...]


@dataclass(frozen=True)
class Share:
    """One share of a secret of `owner`."""

    owner: int
    share: ShareBytes


@dataclass(frozen=True)
class Shares(Message):
    """Of each neighbor either kind: of its masking key if it dropped out, of its own mask else."""

    client: int
    of_masking_keys: tuple[Share, ...]
    of_own_masks: tuple[Share, ...]


KINDS: tuple[type[Message], ...] = (
    Keys,
    KeyList,
    SharedSecrets,
    Delivery,
    MaskedInput,
    Survivors,
    Confirmation,
    Confirmations,
    Shares,
)


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    kind = type(message)
    return b"".join([bytes([KINDS.index(kind)]), *written(kind, message)])


def decode(text: bytes) -> Message:
    """The message of these bytes. Raises MalformedMessage where they are none."""
    if not text or text[0] >= len(KINDS):
        raise MalformedMessage(f"no message begins with {text[:1].hex() or 'nothing'}")
    kind = KINDS[text[0]]
    message, end = read(kind, text, 1)
    if end < len(text):
        raise MalformedMessage(f"{len(text) - end} bytes follow a {kind.__name__}")
    return message
