"""The server of a secure sum: collects, passes on, and learns the sum of those who stayed.

Bonawitz et al. 2017, eprint 2017/281, Fig. 4, and Bell et al. 2020, eprint 2020/704, Alg. 2. With
U1 ⊇ U2 ⊇ U3 ⊇ U4 ⊇ U5, who answered in each stage (all but U5 at least m of n):

    Σ_{u ∈ U3} x_u = Σ_{u ∈ U3} y_u - Σ_{u ∈ U3} PRG(b_u)
                     - Σ_{v ∈ U2 \\ U3} Σ_{u ∈ N(v) ∩ U3} ±PRG(KA.agree(s_v^SK, s_u^PK))
                                                                       (+ for u < v)

b_u and s_v^SK out of any t of the shares that their holders in U5 give. Both are checked, the one
against its commitment and the other against its public key: a wrong share ends in a named error and
never in a wrong sum. Inputs are added as they come, so memory is that of one.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from research.exchange.secure_aggregation import shamir, transcript
from research.exchange.secure_aggregation.errors import (
    DuplicateMessage,
    MalformedMessage,
    MissingShares,
    Refused,
    ReusedKeys,
    TooFew,
    UnknownClient,
    ViewsDiffer,
    WrongShares,
    WrongStage,
)
from research.exchange.secure_aggregation.graph import neighbors_of
from research.exchange.secure_aggregation.keys import Derivation, KeyPair, signed
from research.exchange.secure_aggregation.masks import Masked
from research.exchange.secure_aggregation.messages import (
    Confirmation,
    Confirmations,
    Delivery,
    KeyList,
    Keys,
    MaskedInput,
    Message,
    Share,
    SharedSecrets,
    Shares,
    Survivors,
)
from research.exchange.secure_aggregation.settings import Round

STAGES = (Keys, SharedSecrets, MaskedInput, Confirmation, Shares)
DID = ("advertised keys", "shared secrets", "sent their input", "confirmed", "gave shares")


class Server:
    """The server of one round."""

    def __init__(self, round: Round):
        self.round = round
        self._derivation = Derivation(round.digest)
        self._sum = Masked(np.zeros(round.size, "<u4"))
        self._stage = 0
        self._among: tuple[int, ...] = tuple(range(round.count))
        self._answers: list[dict] = [{} for _ in STAGES]
        self._checks: tuple[Callable[[Any], None], ...] = (
            self._check_keys,
            self._check_secrets,
            self._add_input,
            self._check_confirmation,
            self._check_shares,
        )
        self._ends = (self._end_keys, self._end_secrets, self._end_inputs, self._end_confirmations)

    def receive(self, message: Message) -> None:
        """Takes a client's message. Raises Refused, and goes on as if it had not come, where it is
        not as it has to be."""
        transcript.check_round(self.round, message)
        kind = STAGES[self._stage] if self._stage < len(STAGES) else None
        if kind is None or not isinstance(message, kind):
            wanted = "nothing more comes" if kind is None else f"{kind.__name__} come"
            raise WrongStage(f"the server was sent a {type(message).__name__} while {wanted}")
        sender = message.client
        if sender not in self._among:
            raise UnknownClient(f"client {sender} is not among those whose {kind.__name__} count")
        if sender in self._answers[self._stage]:
            raise DuplicateMessage(f"client {sender} sent {kind.__name__} twice")
        self._checks[self._stage](message)
        # An input is in the sum by now, and is not kept.
        kept = None if isinstance(message, MaskedInput) else message
        self._answers[self._stage][sender] = kept

    def advance(self) -> dict[int, Message]:
        """Ends the stage: the next message for every client that is still part of the round.

        Raises TooFew where fewer have answered than a sum has at least: the round is over.
        """
        if self._stage >= len(self._ends):
            raise WrongStage("the last messages have been sent: ask for the result")
        answered = tuple(sorted(self._answers[self._stage]))
        stage, self._stage = self._stage, len(STAGES)
        transcript.check_enough(self.round, DID[stage], len(answered))
        messages = self._ends[stage](answered)
        self._among, self._stage = answered, stage + 1
        return messages

    def result(self) -> np.ndarray:
        """The sum of the survivors' values modulo 2^32: uint32 [size], once.

        Raises TooFew or WrongShares, and there is no sum, where secrets cannot be put together.
        """
        if self._stage != len(self._ends):
            raise WrongStage("there is no sum before shares came, nor a second one")
        self._stage = len(STAGES)
        self._unmask()
        return self._sum.total.astype(np.uint32)

    @property
    def survivors(self) -> tuple[int, ...]:
        """Whose values are in the sum (U3)."""
        return tuple(sorted(self._answers[2]))

    # 0 AdvertiseKeys ------------------------------------------------------------------------------

    def _check_keys(self, message: Keys) -> None:
        transcript.check_keys(self.round, message.keys)
        seen = [message, *self._answers[0].values()]
        publics = [public for each in seen for public in (each.keys.sealing, each.keys.masking)]
        if len(set(publics)) < len(publics):
            raise ReusedKeys(f"a key of client {message.client} stands in the list already")

    def _end_keys(self, clients: tuple[int, ...]) -> dict[int, Message]:
        self._keys = {client: self._answers[0][client].keys for client in clients}
        listed = KeyList(self.round.digest, tuple(self._keys.values()))
        self._list = transcript.of_list(listed)
        self._neighbors = neighbors_of(clients, self.round.degree, self._list)
        return dict.fromkeys(clients, listed)

    # 1 ShareKeys ----------------------------------------------------------------------------------

    def _check_secrets(self, secrets: SharedSecrets) -> None:
        owner = secrets.client
        ways = [(each.sender, each.receiver) for each in secrets.shares]
        if ways != [(owner, neighbor) for neighbor in self._neighbors[owner]]:
            raise MissingShares(f"client {owner} did not share with each of its neighbors, once")

    def _end_secrets(self, sharers: tuple[int, ...]) -> dict[int, Message]:
        secrets: dict[int, SharedSecrets] = self._answers[1]
        boxes: dict[int, list] = {client: [] for client in sharers}
        for client in sharers:
            for sealed in secrets[client].shares:
                if sealed.receiver in boxes:
                    boxes[sealed.receiver].append(sealed)
        digest = self.round.digest
        return {client: Delivery(digest, sharers, tuple(box)) for client, box in boxes.items()}

    # 2 MaskedInput --------------------------------------------------------------------------------

    def _add_input(self, message: MaskedInput) -> None:
        if len(message.values) != 4 * self.round.size:
            raise MalformedMessage(
                f"client {message.client} sent {len(message.values)} bytes for "
                f"{self.round.size} values of 4"
            )
        self._sum.total += np.frombuffer(message.values, "<u4")

    def _end_inputs(self, survivors: tuple[int, ...]) -> dict[int, Message]:
        self._dropped = tuple(sorted(self._answers[1].keys() - set(survivors)))
        told = Survivors(self.round.digest, survivors, self._dropped)
        return dict.fromkeys(survivors, told)

    # 3 ConsistencyCheck ---------------------------------------------------------------------------

    def _check_confirmation(self, message: Confirmation) -> None:
        view = transcript.of_views(self._list, tuple(sorted(self._answers[1])), self.survivors)
        if not signed(self.round.identities[message.client], message.signed.signature, view):
            raise ViewsDiffer(f"client {message.client} signed other lists than it was told")

    def _end_confirmations(self, clients: tuple[int, ...]) -> dict[int, Message]:
        signed = tuple(self._answers[3][client].signed for client in clients)
        told = Confirmations(self.round.digest, signed)
        return dict.fromkeys(clients, told)

    # 4 Unmasking ----------------------------------------------------------------------------------

    def _check_shares(self, shares: Shares) -> None:
        holder = shares.client
        near = {holder, *self._neighbors[holder]}
        for given, owners in (
            (shares.of_masking_keys, self._dropped),
            (shares.of_own_masks, self.survivors),
        ):
            if [each.owner for each in given] != [owner for owner in owners if owner in near]:
                raise MissingShares(
                    f"client {holder} did not give one share of the right kind of each neighbor"
                )

    def _unmask(self) -> None:
        given: list[Shares] = [self._answers[4][holder] for holder in sorted(self._answers[4])]
        keys = _by_owner((each.client, each.of_masking_keys) for each in given)
        masks = _by_owner((each.client, each.of_own_masks) for each in given)
        survivors = set(self.survivors)
        for owner in sorted(survivors):
            secret = self._secret(owner, masks.get(owner, {}))
            expected = transcript.of_own_mask(self.round, owner, secret)
            if self._answers[1][owner].commitment != expected:
                raise self._wrong(owner, masks[owner])
            self._sum.subtract(self._derivation.self_mask(secret, owner))
        for owner in self._dropped:
            peers = [peer for peer in self._neighbors[owner] if peer in survivors]
            if not peers:
                continue
            pair = KeyPair(self._secret(owner, keys.get(owner, {})))
            if pair.public != self._keys[owner].masking:
                raise self._wrong(owner, keys[owner])
            for peer in peers:
                agreed = pair.agree(self._keys[peer].masking)
                seed = self._derivation.pairwise_mask(agreed, owner, peer)
                (self._sum.subtract if peer < owner else self._sum.add)(seed)

    def _secret(self, owner: int, shares: dict[int, bytes]) -> bytes:
        if len(shares) < self.round.threshold:
            raise TooFew(
                f"{len(shares)} holders gave shares of client {owner}, where its secrets take "
                f"{self.round.threshold}: there is no sum"
            )
        try:
            return shamir.reconstruct(shares, self.round.threshold)
        except WrongShares:
            raise self._wrong(owner, shares) from None

    def _wrong(self, owner: int, shares: dict[int, bytes]) -> Refused:
        used = ", ".join(map(str, sorted(shares)[: self.round.threshold]))
        return WrongShares(
            f"the shares of client {owner} that clients {used} gave are not of the secret that it "
            "committed to: one of them, or the client itself, is at fault; there is no sum"
        )


def _by_owner(given: Iterable[tuple[int, tuple[Share, ...]]]) -> dict[int, dict[int, bytes]]:
    """{owner: {holder: share}}"""
    owners: dict[int, dict[int, bytes]] = {}
    for holder, shares in given:
        for share in shares:
            owners.setdefault(share.owner, {})[holder] = share.share
    return owners
