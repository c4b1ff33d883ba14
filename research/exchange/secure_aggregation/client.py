"""A client of a secure sum: a message in, a message out, and no trust in who sends it.

Bonawitz et al. 2017, *Practical Secure Aggregation for Privacy-Preserving Machine Learning*, CCS,
eprint 2017/281, Fig. 4 (with the lines against active servers), on the neighbors N(u) of Bell et
al. 2020, eprint 2020/704. Client u with values x_u, modulo 2^32:

    0  AdvertiseKeys     c_u, s_u: key pairs; signs both public ones
    1  ShareKeys         b_u at random; t-of-(k+1) shares of s_u^SK and b_u for N(u) and itself,
                         each sealed for its holder with KA.agree(c_u^SK, c_v^PK)
    2  MaskedInput       y_u = x_u + PRG(b_u) + Σ_{v ∈ N(u) ∩ U2} ±PRG(KA.agree(s_u^SK, s_v^PK))
                         (+ for u < v)
    3  ConsistencyCheck  signs the lists U1 (with all keys), U2 and U3
    4  Unmasking         where m or more signed the same: its shares of s_v^SK of those in U2
                         without U3, and of b_v of those in U3

What leaves is a function of `values` in MaskedInput only. Beyond the paper, a client signs U1 and
U2 as well as U3, and commits to b_u (a hash), so that shares of it can be told wrong. A client does
each stage once, in order; whatever else it is sent it refuses by name, and then nothing more is to
be had from it.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from research.exchange.secure_aggregation import shamir, transcript
from research.exchange.secure_aggregation.errors import (
    BothShares,
    ForgedKeys,
    ForgedShares,
    MissingShares,
    Refused,
    ReusedKeys,
    SecondUnmasking,
    TooFew,
    ViewsDiffer,
    WrongStage,
)
from research.exchange.secure_aggregation.graph import neighbors_of
from research.exchange.secure_aggregation.keys import Derivation, Identity, KeyPair, signed
from research.exchange.secure_aggregation.masks import Masked
from research.exchange.secure_aggregation.messages import (
    Confirmation,
    Confirmations,
    Delivery,
    KeyList,
    Keys,
    MaskedInput,
    Message,
    PublicKeys,
    Sealed,
    Share,
    SharedSecrets,
    Shares,
    Signed,
    Survivors,
)
from research.exchange.secure_aggregation.settings import Round

Answer = tuple[type[Message], Callable[[Any], Message]]
"""To what, and by what."""


class Client:
    """Client `number` of one round. `values`: uint32 [size], what it adds to the sum."""

    def __init__(self, round: Round, number: int, identity: Identity, values: np.ndarray):
        if round.identities[number] != identity.public:
            raise ValueError(f"the identity is not that of client {number}")
        if values.dtype != np.uint32 or values.shape != (round.size,):
            raise ValueError(f"{values.dtype} {values.shape} where uint32 ({round.size},) is added")
        self.round, self.number, self.values = round, number, values
        self._identity = identity
        self._derivation = Derivation(round.digest)
        answers: list[Answer] = [
            (KeyList, self._share),
            (Delivery, self._mask),
            (Survivors, self._confirm),
            (Confirmations, self._unmask),
        ]
        self._answers = iter(answers)
        self._begun = False
        self._next: Answer | None = None
        self._unmasked = False

    def begin(self) -> Keys:
        """AdvertiseKeys: what a client says first."""
        if self._begun:
            raise WrongStage(f"client {self.number} has begun already")
        self._begun = True
        self._sealing, self._masking = KeyPair(), KeyPair()
        self._secret = os.urandom(shamir.SECRET_BYTES)
        publics = self._sealing.public, self._masking.public
        text = transcript.of_keys(self.round, self.number, *publics)
        self._keys = PublicKeys(self.number, *publics, self._identity.sign(text))
        self._next = next(self._answers)
        return Keys(self.round.digest, self._keys)

    def receive(self, message: Message) -> Message:
        """The answer to the server's next message.

        Raises Refused, and answers nothing from then on, where it is not as it has to be.
        """
        try:
            transcript.check_round(self.round, message)
            if self._unmasked:
                raise SecondUnmasking(
                    f"client {self.number} has given its shares away, and does so once a round"
                )
            if self._next is None:
                raise WrongStage(f"client {self.number} takes no part in this round (any more)")
            expected, answer = self._next
            if not isinstance(message, expected):
                raise WrongStage(
                    f"client {self.number} was sent a {type(message).__name__} where a "
                    f"{expected.__name__} comes next"
                )
            reply = answer(message)
        except Refused:
            self._next = None
            raise
        self._next = next(self._answers, None)
        return reply

    # 1 ShareKeys ----------------------------------------------------------------------------------

    def _share(self, message: KeyList) -> SharedSecrets:
        round, own = self.round, self.number
        keys = {each.client: each for each in message.keys}
        self._clients = tuple(each.client for each in message.keys)
        transcript.check_members("keys", self._clients, range(round.count))
        transcript.check_enough(round, "advertised keys", len(keys))
        if keys.get(own) != self._keys:
            raise ForgedKeys(f"the keys of client {own} in the list are not those it sent")
        publics = [public for each in message.keys for public in (each.sealing, each.masking)]
        if len(set(publics)) < len(publics):
            raise ReusedKeys("two keys in the list are the same")
        for each in message.keys:
            transcript.check_keys(round, each)
        self._list = transcript.of_list(message)
        neighbors = neighbors_of(self._clients, round.degree, self._list)[own]
        self._public = {number: keys[number] for number in neighbors}
        self._agreed = {v: self._sealing.agree(keys[v].sealing) for v in neighbors}

        holders = (own, *neighbors)
        of_key = shamir.share(self._masking.private, round.threshold, holders)
        of_mask = shamir.share(self._secret, round.threshold, holders)
        self._held = {own: (of_key[own], of_mask[own])}
        sealed = [
            Sealed(own, v, self._derivation.seal(self._agreed[v], own, v, of_key[v] + of_mask[v]))
            for v in neighbors
        ]
        commitment = transcript.of_own_mask(round, own, self._secret)
        return SharedSecrets(round.digest, own, commitment, tuple(sealed))

    # 2 MaskedInput --------------------------------------------------------------------------------

    def _mask(self, message: Delivery) -> MaskedInput:
        own, sharers = self.number, message.sharers
        self._check_part("sharers", sharers, self._clients, "shared secrets")
        wanted = [v for v in self._public if v in set(sharers)]
        senders = [sealed.sender for sealed in message.shares]
        if senders != wanted:
            raise MissingShares(
                f"client {own} was sent shares of clients {_listed(senders)}, where its neighbors "
                f"who shared are {_listed(wanted)}"
            )
        for sealed in message.shares:
            self._held[sealed.sender] = self._opened(sealed)
        self._sharers = sharers
        return MaskedInput(self.round.digest, own, self._masked(self.values).tobytes())

    def _opened(self, sealed: Sealed) -> tuple[bytes, bytes]:
        sender, own = sealed.sender, self.number
        if sealed.receiver != own:
            raise ForgedShares(f"client {own} was sent shares for client {sealed.receiver}")
        text = self._derivation.unseal(self._agreed[sender], sender, own, sealed.text)
        if len(text) != 2 * shamir.SHARE_BYTES:
            raise ForgedShares(
                f"client {sender} sealed {len(text)} bytes, which are not two shares"
            )
        return text[: shamir.SHARE_BYTES], text[shamir.SHARE_BYTES :]

    def _masked(self, values: np.ndarray) -> np.ndarray:
        """y_u [size], as little-endian integers."""
        masked = Masked(values.astype("<u4"))
        masked.add(self._derivation.self_mask(self._secret, self.number))
        for peer in self._held.keys() - {self.number}:
            agreed = self._masking.agree(self._public[peer].masking)
            seed = self._derivation.pairwise_mask(agreed, self.number, peer)
            (masked.add if self.number < peer else masked.subtract)(seed)
        return masked.total

    # 3 ConsistencyCheck ---------------------------------------------------------------------------

    def _confirm(self, message: Survivors) -> Confirmation:
        survivors, dropped = message.survivors, message.dropped
        if both := sorted(set(survivors) & set(dropped)):
            raise BothShares(
                f"client {both[0]} is said to have sent its input and to have dropped out: shares "
                "of both of its secrets would unmask it"
            )
        transcript.check_members("dropped clients", dropped, self._sharers)
        self._check_part("survivors", survivors, self._sharers, "sent their input")
        if missing := sorted(set(self._sharers) - set(survivors) - set(dropped)):
            raise ViewsDiffer(f"client {missing[0]} shared secrets, and is now not spoken of")
        self._survivors, self._dropped = survivors, dropped
        self._view = transcript.of_views(self._list, self._sharers, survivors)
        signed = Signed(self.number, self._identity.sign(self._view))
        return Confirmation(self.round.digest, signed)

    # 4 Unmasking ----------------------------------------------------------------------------------

    def _unmask(self, message: Confirmations) -> Shares:
        numbers = tuple(each.client for each in message.signed)
        transcript.check_members("confirmations", numbers, self._survivors)
        transcript.check_enough(self.round, "confirmed", len(numbers))
        for each in message.signed:
            if not signed(self.round.identities[each.client], each.signature, self._view):
                raise ViewsDiffer(
                    f"client {each.client} did not sign the lists of keys, sharers and survivors "
                    f"that client {self.number} was told"
                )
        self._unmasked = True
        held = self._held
        return Shares(
            self.round.digest,
            self.number,
            tuple(Share(v, held[v][0]) for v in self._dropped if v in held),
            tuple(Share(v, held[v][1]) for v in self._survivors if v in held),
        )

    # ----------------------------------------------------------------------------------------------

    def _check_part(
        self, what: str, members: tuple[int, ...], among: tuple[int, ...], did: str
    ) -> None:
        """That enough of all clients, and of the holders of the own secrets, are still there."""
        transcript.check_members(what, members, among)
        transcript.check_enough(self.round, did, len(members))
        if self.number not in members:
            raise ViewsDiffer(f"client {self.number} {did}, and is not among those who did")
        here = len({self.number, *self._public} & set(members))
        if here < self.round.threshold:
            raise TooFew(
                f"{here} holders of shares of client {self.number} {did}, where its secrets take "
                f"{self.round.threshold}"
            )


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
