"""Keys: who signs, who agrees on a secret with whom, and what is derived from it.

Bonawitz et al. 2017, eprint 2017/281, §3 (KA, SIG, AE) with these primitives of `cryptography`:

    SIG    Ed25519 (RFC 8032), of an identity that outlives rounds and that all others know
    KA     X25519 (RFC 7748), two key pairs a client and round: one to seal shares, one for masks
    KDF    HKDF-SHA256 (RFC 5869), salt: the round, info: the purpose and both clients
    AE     ChaCha20-Poly1305 (RFC 8439), associated data: the round, sender and receiver

A sealing key is derived for one direction of one pair in one round and seals one message, so its
nonce is 0. Of a secret that two clients share, neither mask nor sealing key tells anything about
the other: they have different purposes.
"""

import hashlib
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from research.exchange.secure_aggregation.errors import ForgedKeys, ForgedShares

KEY_BYTES = 32
SIGNATURE_BYTES = 64
_NONCE = bytes(12)


class Identity:
    """Who a client is in all rounds: a key pair of Ed25519."""

    def __init__(self, key: Ed25519PrivateKey | None = None):
        """Of a key that is kept somewhere, or a new one."""
        self._key = key or Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes."""
        return self._key.sign(message)


def signed(identity: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the owner of the public key `identity` signed `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class KeyPair:
    """A key pair of X25519, for one round."""

    def __init__(self, private: bytes | None = None):
        """Of a private key of 32 bytes, or a new one."""
        key = X25519PrivateKey
        self._key = key.generate() if private is None else key.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

    @property
    def private(self) -> bytes:
        """32 bytes, which are shared out so that masks can be taken away."""
        return self._key.private_bytes_raw()

    def agree(self, public: bytes) -> bytes:
        """The secret with the owner of `public`. Raises ForgedKeys for a point of low order, with
        which everybody would have the same."""
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise ForgedKeys(f"a public key is no key of X25519 ({error})") from None


@dataclass(frozen=True)
class Derivation:
    """What comes of secrets in one round (its digest, 32 bytes)."""

    round: bytes

    def pairwise_mask(self, secret: bytes, one: int, other: int) -> bytes:
        """The seed of the mask that two clients have between them."""
        return self._derive(secret, b"pairwise mask", min(one, other), max(one, other))

    def self_mask(self, secret: bytes, owner: int) -> bytes:
        """The seed of the mask that a client puts over its own."""
        return self._derive(secret, b"self mask", owner, owner)

    def seal(self, secret: bytes, sender: int, receiver: int, text: bytes) -> bytes:
        """`text` for the receiver's eyes; 16 bytes longer. Once a direction and round."""
        sealing, data = self._sealing(secret, sender, receiver)
        return sealing.encrypt(_NONCE, text, data)

    def unseal(self, secret: bytes, sender: int, receiver: int, sealed: bytes) -> bytes:
        """What was sealed. Raises ForgedShares where it was not, so, or in another round."""
        sealing, data = self._sealing(secret, sender, receiver)
        try:
            return sealing.decrypt(_NONCE, sealed, data)
        except InvalidTag:
            raise ForgedShares(
                f"shares that are said to be from client {sender} to client {receiver} were not "
                "sealed by the one for the other in this round"
            ) from None

    def _sealing(self, secret: bytes, sender: int, receiver: int) -> tuple[ChaCha20Poly1305, bytes]:
        key = self._derive(secret, b"seal", sender, receiver)
        return ChaCha20Poly1305(key), self.round + struct.pack("<II", sender, receiver)

    def _derive(self, secret: bytes, purpose: bytes, one: int, other: int) -> bytes:
        info = purpose + struct.pack("<II", one, other)
        return HKDF(SHA256(), KEY_BYTES, salt=self.round, info=info).derive(secret)


def digest(*parts: bytes) -> bytes:
    """SHA-256 of the parts with their lengths: 32 bytes."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(struct.pack("<Q", len(part)) + part)
    return hashed.digest()
