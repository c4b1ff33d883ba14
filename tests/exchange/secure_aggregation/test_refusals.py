"""Malicious servers and malicious clients: every attack ends in a named refusal, and in no sum."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from research.errors import UserError
from research.exchange.secure_aggregation import (
    BothShares,
    CohortTooSmall,
    DuplicateMessage,
    ForgedKeys,
    ForgedShares,
    Identity,
    MalformedMessage,
    MissingShares,
    Refused,
    ReusedKeys,
    Round,
    SecondUnmasking,
    ThresholdTooHigh,
    ThresholdTooLow,
    TooFew,
    UnknownClient,
    ViewsDiffer,
    WrongRound,
    WrongShares,
    WrongStage,
    transcript,
)
from research.exchange.secure_aggregation.keys import KeyPair
from research.exchange.secure_aggregation.messages import (
    Confirmations,
    Delivery,
    KeyList,
    Message,
    PublicKeys,
    Sealed,
    Signed,
    Survivors,
)
from tests.exchange.secure_aggregation.conftest import (
    Play,
    a_round,
    identities,
    play,
    some_values,
)

AT = {KeyList: 1, Delivery: 2, Survivors: 3, Confirmations: 4}
"""The stage at which a client is sent each message."""


def without(items: tuple, place: int) -> tuple:
    return items[:place] + items[place + 1 :]


def changed(items: tuple, place: int, **fields: Any) -> tuple:
    return (*items[:place], replace(items[place], **fields), *items[place + 1 :])


def flipped(text: bytes) -> bytes:
    """One bit of the ninth byte: X25519 itself leaves out some of a key's first and last one."""
    return text[:8] + bytes([text[8] ^ 1]) + text[9:]


def own_keys(number: int, signer: Identity, round: Round) -> PublicKeys:
    """Keys that somebody made for client `number`, signed by `signer`."""
    sealing, masking = KeyPair().public, KeyPair().public
    text = transcript.of_keys(round, number, sealing, masking)
    return PublicKeys(number, sealing, masking, signer.sign(text))


# What a malicious server sends client 0 of 5 (t = 3), and what it answers -------------------------

Attack = Callable[[Play, Any], Message]

SERVER: dict[str, tuple[type[Message], Attack, type[Refused], str]] = {
    "keys of its own for client 2": (
        KeyList,
        lambda game, sent: replace(
            sent, keys=(*sent.keys[:2], own_keys(2, Identity(), game.round), *sent.keys[3:])
        ),
        ForgedKeys,
        "client 2 did not sign",
    ),
    "keys that client 3 signed, as client 2's": (
        KeyList,
        lambda game, sent: replace(
            sent, keys=(*sent.keys[:2], replace(sent.keys[3], client=2), *sent.keys[4:])
        ),
        ForgedKeys,
        "client 2 did not sign",
    ),
    "keys that client 2 signed in another round": (
        KeyList,
        lambda game, sent: replace(
            sent,
            keys=(*sent.keys[:2], own_keys(2, identities(5)[2], a_round(5, 3)), *sent.keys[3:]),
        ),
        ForgedKeys,
        "client 2 did not sign",
    ),
    "another masking key under client 2's signature": (
        KeyList,
        lambda game, sent: replace(sent, keys=changed(sent.keys, 2, masking=KeyPair().public)),
        ForgedKeys,
        "client 2 did not sign",
    ),
    "client 0's keys again, as client 2's": (
        KeyList,
        lambda game, sent: replace(
            sent, keys=(*sent.keys[:2], replace(sent.keys[0], client=2), *sent.keys[3:])
        ),
        ReusedKeys,
        "two keys in the list are the same",
    ),
    "a list without client 0": (
        KeyList,
        lambda game, sent: replace(sent, keys=sent.keys[1:]),
        ForgedKeys,
        "keys of client 0 in the list are not those it sent",
    ),
    "a list of two": (
        KeyList,
        lambda game, sent: replace(sent, keys=sent.keys[:2]),
        TooFew,
        "2 of 5 clients advertised keys, where a sum has at least 3",
    ),
    "client 1 twice": (
        KeyList,
        lambda game, sent: replace(sent, keys=(*sent.keys[:2], *sent.keys[1:])),
        MalformedMessage,
        "not listed once each",
    ),
    "a client that was never asked": (
        KeyList,
        lambda game, sent: replace(
            sent, keys=(*sent.keys, own_keys(5, Identity(), replace(game.round)))
        ),
        UnknownClient,
        "client 5",
    ),
    "shares of two clients swapped": (
        Delivery,
        lambda game, sent: replace(
            sent,
            shares=(
                replace(sent.shares[0], text=sent.shares[1].text),
                replace(sent.shares[1], text=sent.shares[0].text),
                *sent.shares[2:],
            ),
        ),
        ForgedShares,
        "not sealed by the one for the other",
    ),
    "shares for another client": (
        Delivery,
        lambda game, sent: replace(
            sent,
            shares=(*sent.shares[:1], *changed(game.inbox[1].shares, 1)[1:2], *sent.shares[2:]),
        ),
        ForgedShares,
        "client 0 was sent shares for client 1",
    ),
    "shares for another client under client 0's name": (
        Delivery,
        lambda game, sent: replace(
            sent, shares=changed(sent.shares, 1, text=game.inbox[1].shares[1].text)
        ),
        ForgedShares,
        "from client 2 to client 0 were not sealed",
    ),
    "one bit of a share": (
        Delivery,
        lambda game, sent: replace(
            sent, shares=changed(sent.shares, 3, text=flipped(sent.shares[3].text))
        ),
        ForgedShares,
        "from client 4",
    ),
    "shares that the server sealed": (
        Delivery,
        lambda game, sent: replace(
            sent, shares=changed(sent.shares, 0, text=bytes(len(sent.shares[0].text)))
        ),
        ForgedShares,
        "from client 1",
    ),
    "no shares of one who shared": (
        Delivery,
        lambda game, sent: replace(sent, shares=without(sent.shares, 1)),
        MissingShares,
        "sent shares of clients 1, 3, 4, where its neighbors who shared are 1, 2, 3, 4",
    ),
    "shares of one client twice": (
        Delivery,
        lambda game, sent: replace(sent, shares=(sent.shares[0], *sent.shares)),
        MissingShares,
        "sent shares of clients 1, 1, 2",
    ),
    "sharers without client 0": (
        Delivery,
        lambda game, sent: replace(sent, sharers=sent.sharers[1:]),
        ViewsDiffer,
        "client 0 shared secrets, and is not among those who did",
    ),
    "two sharers": (
        Delivery,
        lambda game, sent: replace(sent, sharers=(0, 1), shares=sent.shares[:1]),
        TooFew,
        "2 of 5 clients shared secrets",
    ),
    "both kinds of shares of client 2": (
        Survivors,
        lambda game, sent: replace(sent, dropped=(2,)),
        BothShares,
        "client 2 is said to have sent its input and to have dropped out",
    ),
    "client 0 itself dropped": (
        Survivors,
        lambda game, sent: replace(sent, survivors=sent.survivors[1:], dropped=(0,)),
        ViewsDiffer,
        "client 0 sent their input, and is not among those who did",
    ),
    "two survivors": (
        Survivors,
        lambda game, sent: replace(sent, survivors=(0, 1), dropped=(2, 3, 4)),
        TooFew,
        "2 of 5 clients sent their input",
    ),
    "a client that is in neither list": (
        Survivors,
        lambda game, sent: replace(sent, survivors=sent.survivors[:4]),
        ViewsDiffer,
        "client 4 shared secrets, and is now not spoken of",
    ),
    "a survivor that did not share": (
        Survivors,
        lambda game, sent: replace(sent, survivors=(*sent.survivors, 7)),
        UnknownClient,
        "survivors include client 7",
    ),
    "survivors out of order": (
        Survivors,
        lambda game, sent: replace(sent, survivors=(1, 0, 2, 3, 4)),
        MalformedMessage,
        "not listed once each, in ascending order",
    ),
    "two confirmations": (
        Confirmations,
        lambda game, sent: replace(sent, signed=sent.signed[:2]),
        TooFew,
        "2 of 5 clients confirmed",
    ),
    "one confirmation three times": (
        Confirmations,
        lambda game, sent: replace(sent, signed=sent.signed[:1] * 3),
        MalformedMessage,
        "not listed once each",
    ),
    "a confirmation that nobody signed": (
        Confirmations,
        lambda game, sent: replace(sent, signed=changed(sent.signed, 1, signature=bytes(64))),
        ViewsDiffer,
        "client 1 did not sign the lists",
    ),
    "client 1's confirmation as client 2's": (
        Confirmations,
        lambda game, sent: replace(
            sent, signed=changed(sent.signed, 2, signature=sent.signed[1].signature)
        ),
        ViewsDiffer,
        "client 2 did not sign the lists",
    ),
}


@pytest.mark.parametrize("name", SERVER)
def test_a_client_refuses_a_malicious_server(name: str) -> None:
    kind, attack, refusal, words = SERVER[name]
    game = play(5, 3).until(AT[kind])
    client, honest = game.clients[0], game.inbox[0]
    assert isinstance(honest, kind)
    with pytest.raises(refusal, match=words):
        client.receive(attack(game, honest))
    with pytest.raises(WrongStage, match="takes no part"):  # nor what was right
        client.receive(honest)


@pytest.mark.parametrize("stage", range(1, 5))
def test_a_client_refuses_messages_of_another_round(stage: int) -> None:
    """The same clients, settings and values: the nonce alone differs."""
    here, there = play(5, 3).until(stage), play(5, 3).until(stage)
    with pytest.raises(WrongRound, match="of another round"):
        here.clients[0].receive(there.inbox[0])
    if stage != 3:  # two lists of numbers are signed by nobody, until the next stage
        relabelled = replace(there.inbox[1], round=here.round.digest)
        with pytest.raises((ForgedKeys, ForgedShares, ViewsDiffer)):
            here.clients[1].receive(relabelled)


@pytest.mark.parametrize("stage", range(1, 5))
def test_a_client_refuses_what_comes_out_of_turn(stage: int) -> None:
    """Every message of the round at every stage but its own; replays of the last one among them."""
    messages = {}
    game = play(5, 3)
    for now in range(1, 5):
        game.answer()
        messages[now] = game.deliver()[0]
    for now, message in messages.items():
        if now != stage:
            fresh = Play(game.round, game.values)
            fresh.until(stage)
            with pytest.raises(WrongStage, match="comes next"):
                fresh.clients[0].receive(message)


def test_a_client_unmasks_once() -> None:
    game = play(5, 3).until(4)
    request = game.inbox[0]
    game.answer()
    for again in (request, Survivors(game.round.digest, (0, 1, 2), (3, 4))):
        with pytest.raises(SecondUnmasking, match="client 0 has given its shares away"):
            game.clients[0].receive(again)
    with pytest.raises(WrongStage, match="has begun already"):
        game.clients[0].begin()


@pytest.mark.parametrize("shown", ["own side's", "all"])
def test_a_partition_of_the_cohort_unmasks_nobody(shown: str) -> None:
    """A server tells 0, 1 and 2 that 4 dropped out, and 3 and 4 that 2 did, to have shares of both
    secrets of 2 and of 4. Signatures of both sides differ, and only one side can be a quorum."""
    game = play(5, 3).until(3)
    digest = game.round.digest
    sides = {(0, 1, 2): ((0, 1, 2, 3), (4,)), (3, 4): ((0, 1, 3, 4), (2,))}
    signed = {
        one: game.clients[one].receive(Survivors(digest, *view)).signed
        for side, view in sides.items()
        for one in side
    }
    for side, (survivors, _) in sides.items():
        signers = [one for one in survivors if shown == "all" or one in side]
        request = Confirmations(digest, tuple(signed[one] for one in signers))
        for one in side:
            if shown == "all":
                with pytest.raises(ViewsDiffer, match="did not sign the lists"):
                    game.clients[one].receive(request)
            elif side == (3, 4):
                with pytest.raises(TooFew, match="2 of 5 clients confirmed"):
                    game.clients[one].receive(request)
            else:
                given = game.clients[one].receive(request)
                assert [share.owner for share in given.of_own_masks] == [0, 1, 2, 3]


def test_a_partition_by_keys_is_refused_by_the_honest_among_servers() -> None:
    """Clients 0 to 3 are not told of client 4's keys: what they share leaves client 4 out."""
    game = play(5, 3).until(1)
    for number in range(4):
        game.inbox[number] = replace(game.inbox[number], keys=game.inbox[number].keys[:4])
    with pytest.raises(MissingShares):
        game.server.receive(game.answer()[0])


def test_a_partition_by_sharers_is_noticed() -> None:
    """Of client 4's shares only client 0 is told. Then it drops out: all have the same survivors,
    and sign different lists."""
    game = play(5, 3).until(2)
    for number in (1, 2, 3):
        sent = game.inbox[number]
        game.inbox[number] = replace(sent, sharers=(0, 1, 2, 3), shares=sent.shares[:3])
    game.answer({4})
    digest, survivors = game.round.digest, (0, 1, 2, 3)
    signed = [
        game.clients[number].receive(Survivors(digest, survivors, () if number else (4,))).signed
        for number in survivors
    ]
    for number in survivors:
        with pytest.raises(ViewsDiffer, match="did not sign the lists"):
            game.clients[number].receive(Confirmations(digest, tuple(signed)))


# What a malicious client sends an honest server ---------------------------------------------------

CLIENT: dict[str, tuple[int, Callable[[Play, Any], Any], type[Refused], str]] = {
    "keys it did not sign": (
        0,
        lambda game, sent: replace(sent, keys=replace(sent.keys, signature=bytes(64))),
        ForgedKeys,
        "client 2 did not sign",
    ),
    "keys in another's name": (
        0,
        lambda game, sent: replace(sent, keys=own_keys(4, identities(5)[2], game.round)),
        DuplicateMessage,
        "client 4 sent Keys twice",
    ),
    "one key for two purposes": (
        0,
        lambda game, sent: replace(
            sent,
            keys=PublicKeys(
                2,
                sent.keys.sealing,
                sent.keys.sealing,
                identities(5)[2].sign(
                    transcript.of_keys(game.round, 2, sent.keys.sealing, sent.keys.sealing)
                ),
            ),
        ),
        ReusedKeys,
        "a key of client 2 stands in the list already",
    ),
    "somebody who was not asked": (
        0,
        lambda game, sent: replace(sent, keys=replace(sent.keys, client=5)),
        UnknownClient,
        "client 5 is not among those",
    ),
    "no shares for one neighbor": (
        1,
        lambda game, sent: replace(sent, shares=sent.shares[1:]),
        MissingShares,
        "client 2 did not share with each",
    ),
    "two shares for one neighbor": (
        1,
        lambda game, sent: replace(sent, shares=(sent.shares[0], *sent.shares)),
        MissingShares,
        "client 2 did not share with each",
    ),
    "shares from another": (
        1,
        lambda game, sent: replace(sent, shares=changed(sent.shares, 0, sender=3)),
        MissingShares,
        "client 2 did not share with each",
    ),
    "values too few": (
        2,
        lambda game, sent: replace(sent, values=sent.values[:-4]),
        MalformedMessage,
        "client 2 sent 16 bytes for 5 values",
    ),
    "another list signed": (
        3,
        lambda game, sent: replace(sent, signed=Signed(2, identities(5)[2].sign(b"other lists"))),
        ViewsDiffer,
        "client 2 signed other lists than it was told",
    ),
    "a share twice": (
        4,
        lambda game, sent: replace(sent, of_own_masks=(sent.of_own_masks[0], *sent.of_own_masks)),
        MissingShares,
        "client 2 did not give one share",
    ),
    "a share missing": (
        4,
        lambda game, sent: replace(sent, of_own_masks=sent.of_own_masks[1:]),
        MissingShares,
        "client 2 did not give one share",
    ),
    "shares of the other kind": (
        4,
        lambda game, sent: replace(
            sent, of_masking_keys=sent.of_own_masks, of_own_masks=sent.of_masking_keys
        ),
        MissingShares,
        "client 2 did not give one share of the right kind",
    ),
}


@pytest.mark.parametrize("name", CLIENT)
def test_the_server_refuses_a_malicious_client_and_goes_on(name: str) -> None:
    """It takes the honest message of that client afterwards, and the sum is right."""
    stage, attack, refusal, words = CLIENT[name]
    game = play(5, 3).until(stage)
    game.answer()
    honest = game.answers.pop(2)
    for message in game.answers.values():
        game.server.receive(message)
    with pytest.raises(refusal, match=words):
        game.server.receive(attack(game, honest))
    game.server.receive(honest)
    with pytest.raises(DuplicateMessage, match="client 2 sent .* twice"):
        game.server.receive(honest)
    game.answers = {}
    while game.server._stage < 4:
        game.deliver()
        game.answer()
    assert (game.result() == some_values(5).sum(0, dtype="uint32")).all()


def test_keys_in_the_name_of_one_who_has_sent_none_are_forged() -> None:
    game = play(5, 3)
    sent = game.answer()[2]
    with pytest.raises(ForgedKeys, match="client 4 did not sign"):
        game.server.receive(replace(sent, keys=own_keys(4, identities(5)[2], game.round)))


def test_the_server_refuses_another_round_and_what_is_late() -> None:
    game, other = play(5, 3).until(2), play(5, 3).until(2)
    late = game.answer()[4]
    with pytest.raises(WrongRound):
        game.server.receive(other.answer()[0])
    game.answers.pop(4)
    game.deliver()
    with pytest.raises(WrongStage, match="sent a MaskedInput while Confirmation come"):
        game.server.receive(late)
    survivor = game.answer()[0]
    with pytest.raises(UnknownClient, match="client 4 is not among those"):
        game.server.receive(replace(survivor, signed=replace(survivor.signed, client=4)))


@pytest.mark.parametrize("kind", ["of_own_masks", "of_masking_keys"])
@pytest.mark.parametrize("attack", ["wrong", "swapped"])
def test_wrong_shares_end_in_no_sum_and_never_in_a_wrong_one(kind: str, attack: str) -> None:
    """Clients 3 and 4 drop out after their shares; client 0 gives one changed, or two swapped."""
    game = play(5, 3).until(4, {3: 2, 4: 2})
    shares = getattr(game.answer()[0], kind)
    if attack == "wrong":
        spoiled = changed(shares, 0, share=flipped(shares[0].share))
    else:
        spoiled = (
            replace(shares[0], share=shares[1].share),
            replace(shares[1], share=shares[0].share),
            *shares[2:],
        )
    game.answers[0] = replace(game.answers[0], **{kind: spoiled})
    with pytest.raises(WrongShares, match="that clients 0, 1, 2 gave .* there is no sum"):
        game.result()
    with pytest.raises(WrongStage):
        game.server.result()


def test_a_client_that_commits_to_another_mask_is_told() -> None:
    game = play(5, 3).until(1)
    game.answer()
    game.answers[1] = replace(game.answers[1], commitment=bytes(32))
    game.deliver()
    for _ in range(2):
        game.answer()
        game.deliver()
    game.answer()
    with pytest.raises(WrongShares, match="the shares of client 1"):
        game.result()


def test_a_dealer_of_shares_that_are_none_is_refused_by_their_holder() -> None:
    game = play(5, 3).until(1)
    game.answer()
    dealer = game.clients[1]
    sealed = dealer._derivation.seal(dealer._agreed[0], 1, 0, b"short")
    shares = (Sealed(1, 0, sealed), *game.answers[1].shares[1:])
    game.answers[1] = replace(game.answers[1], shares=shares)
    game.deliver()
    with pytest.raises(ForgedShares, match="client 1 sealed 5 bytes, which are not two shares"):
        game.answer()


# What is asked for --------------------------------------------------------------------------------

ROUNDS: dict[str, tuple[dict[str, Any], type[UserError], str]] = {
    "2 clients": (
        {"count": 2, "threshold": 2},
        CohortTooSmall,
        "a secure sum of 2: take at least 3 clients. Of 2, each subtracts its own",
    ),
    "sums of 2": ({"count": 3, "threshold": 2}, CohortTooSmall, "a secure sum of 2"),
    "half of the shares": (
        {"count": 10, "threshold": 5},
        ThresholdTooLow,
        "5 of 10 holders .* take at least 6",
    ),
    "half of the neighbors": (
        {"count": 20, "threshold": 4, "neighbors": 8},
        ThresholdTooLow,
        "4 of 9 holders .* take at least 5",
    ),
    "sums of half": (
        {"count": 20, "threshold": 11, "minimum": 10},
        ThresholdTooLow,
        "sums of 10 of 20 clients: .* take at least 11",
    ),
    "more shares than holders": ({"count": 5, "threshold": 6}, ThresholdTooHigh, "at most 5"),
    "larger sums than clients": (
        {"count": 5, "threshold": 3, "minimum": 6},
        ThresholdTooHigh,
        "at least 6 clients, of which there are 5",
    ),
    "odd neighbors": (
        {"count": 20, "threshold": 5, "neighbors": 7},
        UserError,
        "7 neighbors, .* take an even",
    ),
    "no values": ({"count": 5, "threshold": 3, "size": 0}, UserError, "0 values a client"),
}


@pytest.mark.parametrize("name", ROUNDS)
def test_rounds_that_protect_nobody_are_refused(name: str) -> None:
    arguments, refusal, words = ROUNDS[name]
    with pytest.raises(refusal, match=words):
        a_round(**{"smallest": 3} | arguments)


def test_an_identity_twice_is_refused() -> None:
    with pytest.raises(UserError, match="not 3 different keys"):
        Round((identities(2)[0].public, *(one.public for one in identities(2))), 5, 3)


def test_the_digest_is_of_everything_that_is_agreed_on() -> None:
    round = a_round(9, 5)
    same = replace(round)
    assert same.digest == round.digest
    others = [
        replace(round, size=6),
        replace(round, threshold=6),
        replace(round, neighbors=6),
        replace(round, minimum=6),
        replace(round, smallest=4),
        replace(round, nonce=bytes(16)),
        replace(round, identities=round.identities[::-1]),
        replace(round, identities=(*round.identities[:-1], Identity().public)),
        a_round(9, 5),
    ]
    assert len({round.digest, *(other.digest for other in others)}) == 1 + len(others)
