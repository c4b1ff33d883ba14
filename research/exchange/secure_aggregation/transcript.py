"""What a client signs, and what client and server have to see alike."""

import struct
from collections.abc import Sequence
from itertools import pairwise

from research.exchange.secure_aggregation.errors import (
    ForgedKeys,
    MalformedMessage,
    TooFew,
    UnknownClient,
    WrongRound,
)
from research.exchange.secure_aggregation.keys import digest, signed
from research.exchange.secure_aggregation.messages import KeyList, Message, PublicKeys, encode
from research.exchange.secure_aggregation.settings import Round


def of_keys(round: Round, client: int, sealing: bytes, masking: bytes) -> bytes:
    """What a client signs of its public keys."""
    return digest(b"keys", round.digest, struct.pack("<I", client), sealing, masking)


def check_keys(round: Round, keys: PublicKeys) -> None:
    """Raises ForgedKeys where their owner did not sign them, for this round."""
    text = of_keys(round, keys.client, keys.sealing, keys.masking)
    if not signed(round.identities[keys.client], keys.signature, text):
        raise ForgedKeys(f"client {keys.client} did not sign the keys that are said to be its")


def of_list(keys: KeyList) -> bytes:
    """The digest of everybody's keys: also the seed of the graph."""
    return digest(b"key list", encode(keys))


def of_views(list_of_keys: bytes, sharers: Sequence[int], survivors: Sequence[int]) -> bytes:
    """What a client signs before it gives any share away: U1 with its keys, U2 and U3."""
    return digest(b"views", list_of_keys, _packed(sharers), _packed(survivors))


def of_own_mask(round: Round, client: int, secret: bytes) -> bytes:
    """The commitment to the secret of a client's own mask. It is uniform, so this hides it."""
    return digest(b"own mask", round.digest, struct.pack("<I", client), secret)


def check_round(round: Round, message: Message) -> None:
    """Raises WrongRound where the message belongs to another."""
    if message.round != round.digest:
        raise WrongRound(
            f"a {type(message).__name__} of another round, or of one with other clients, size or "
            "threshold"
        )


def check_members(what: str, members: Sequence[int], among: Sequence[int]) -> None:
    """Raises MalformedMessage where `members` do not ascend, UnknownClient where one is not
    `among` those who may be."""
    if any(a >= b for a, b in pairwise(members)):
        raise MalformedMessage(f"{what} are not listed once each, in ascending order")
    if strangers := sorted(set(members) - set(among)):
        raise UnknownClient(f"{what} include client {strangers[0]}, who took no part before")


def check_enough(round: Round, what: str, count: int) -> None:
    """Raises TooFew where fewer clients are left than a sum has at least."""
    if count < round.least:
        raise TooFew(
            f"{count} of {round.count} clients {what}, where a sum has at least {round.least}: "
            "nothing more is revealed, and there is no sum"
        )


def _packed(numbers: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)
