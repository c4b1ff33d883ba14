"""Published test vectors, through this package's own calls where it has one."""

import hashlib
import hmac
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from research.exchange.secure_aggregation import ForgedKeys, ForgedShares, Identity
from research.exchange.secure_aggregation.keys import Derivation, KeyPair, signed
from research.exchange.secure_aggregation.masks import BLOCK, Masked

of = bytes.fromhex


@pytest.mark.parametrize(
    "scalar, point, result",
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_agreement_is_x25519_of_rfc_7748(scalar: str, point: str, result: str) -> None:
    """§5.2."""
    assert KeyPair(of(scalar)).agree(of(point)) == of(result)


@pytest.mark.parametrize("public", [bytes(32), b"\1" + bytes(31)])
def test_points_of_low_order_are_no_keys(public: bytes) -> None:
    with pytest.raises(ForgedKeys, match="no key of X25519"):
        KeyPair().agree(public)


@pytest.mark.parametrize(
    "secret, public, message, signature",
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ],
)
def test_identities_sign_as_in_rfc_8032(
    secret: str, public: str, message: str, signature: str
) -> None:
    """§7.1, tests 1 and 2."""
    identity = Identity(Ed25519PrivateKey.from_private_bytes(of(secret)))
    assert identity.public == of(public)
    assert identity.sign(of(message)) == of(signature)
    assert signed(identity.public, of(signature), of(message))
    assert not signed(identity.public, of(signature), of(message) + b"!")
    assert not signed(identity.public, bytes(64), of(message))
    assert not signed(b"\xff" * 32, of(signature), of(message))


def test_derivation_of_keys_is_hkdf_of_rfc_5869() -> None:
    """A.1; and ours beside extract and expand by hand."""
    info, salt = of("f0f1f2f3f4f5f6f7f8f9"), of("000102030405060708090a0b0c")
    assert HKDF(SHA256(), 42, salt, info).derive(b"\x0b" * 22) == of(
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    secret, round = b"s" * 32, b"r" * 32

    def by_hand(info: bytes) -> bytes:
        extracted = hmac.digest(round, secret, hashlib.sha256)
        return hmac.digest(extracted, info + b"\1", hashlib.sha256)

    derivation = Derivation(round)
    pairwise = by_hand(b"pairwise mask" + struct.pack("<II", 3, 8))
    assert derivation.pairwise_mask(secret, 8, 3) == pairwise
    assert derivation.pairwise_mask(secret, 3, 8) == pairwise
    assert derivation.self_mask(secret, 3) == by_hand(b"self mask" + struct.pack("<II", 3, 3))


def test_counter_mode_is_that_of_sp_800_38a() -> None:
    """F.5.5, CTR-AES256."""
    key = of("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = of("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    text = of(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()
    assert encryptor.update(text) == of(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )


def test_a_mask_is_the_blocks_of_aes_256_from_0_on() -> None:
    """For a key of zeros: the hash key and the first two counter blocks of test cases 13 and 14 of
    McGrew and Viega's *The Galois/Counter Mode of Operation*."""
    masked = Masked(np.zeros(12, np.uint32))
    masked.add(bytes(32))
    assert masked.total.astype("<u4").tobytes() == of(
        "dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738b"
        "cea7403d4d606b6e074ec5d3baf39d18"
    )


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_masks_of_any_size_are_one_stream(size: int) -> None:
    seed = bytes(range(32))
    encryptor = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()
    stream = np.frombuffer(encryptor.update(bytes(4 * size)), "<u4")
    start = np.arange(size, dtype=np.uint32) * np.uint32(2654435761)
    masked = Masked(start.copy())
    masked.add(seed)
    np.testing.assert_array_equal(masked.total, start + stream)
    masked.subtract(seed)
    masked.subtract(seed)
    np.testing.assert_array_equal(masked.total, start - stream)


def test_sealing_is_the_aead_of_rfc_8439() -> None:
    """§2.8.2."""
    cipher = ChaCha20Poly1305(bytes(range(0x80, 0xA0)))
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    nonce, data = of("070000004041424344454647"), of("50515253c0c1c2c3c4c5c6c7")
    sealed = cipher.encrypt(nonce, text, data)
    assert sealed[:16] == of("d31a8d34648e60db7b86afbc53ef7ec2")
    assert sealed[-16:] == of("1ae10b594f09e26a7e902ecbd0600691")


def test_what_is_sealed_opens_for_its_receiver_in_its_round_only() -> None:
    one, other = KeyPair(), KeyPair()
    secret = one.agree(other.public)
    assert secret == other.agree(one.public)
    derivation = Derivation(b"r" * 32)
    sealed = derivation.seal(secret, 1, 2, b"shares")
    assert derivation.unseal(secret, 1, 2, sealed) == b"shares"
    way = struct.pack("<II", 1, 2)  # in the key, and in the associated data
    extracted = hmac.digest(b"r" * 32, secret, hashlib.sha256)
    key = hmac.digest(extracted, b"seal" + way + b"\1", hashlib.sha256)
    assert ChaCha20Poly1305(key).decrypt(bytes(12), sealed, b"r" * 32 + way) == b"shares"
    for attempt in (
        lambda: derivation.unseal(secret, 2, 1, sealed),
        lambda: derivation.unseal(secret, 1, 3, sealed),
        lambda: Derivation(b"q" * 32).unseal(secret, 1, 2, sealed),
        lambda: derivation.unseal(KeyPair().agree(one.public), 1, 2, sealed),
        lambda: derivation.unseal(secret, 1, 2, sealed[:-1] + bytes([sealed[-1] ^ 1])),
        lambda: derivation.unseal(secret, 1, 2, b""),
    ):
        with pytest.raises(ForgedShares):
            attempt()
