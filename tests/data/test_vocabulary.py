"""Tokens and text: what is encoded comes back, and what has no token is named."""

import subprocess
import sys

import numpy as np
import pytest

from research.data import vocabulary
from research.data.vocabulary import (
    BPEVocabulary,
    ByteVocabulary,
    CharacterVocabulary,
    vocabulary_from_json,
)
from research.errors import UserError

TEXT = "Naïve façade, 𝛼 and 日本.\n\n\n  def f(x):\n\treturn x\r\n" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path))
    return tmp_path


def make(kind: str) -> vocabulary.Vocabulary:
    if kind == "byte":
        return ByteVocabulary()
    if kind == "character":
        return CharacterVocabulary.of_text(TEXT)
    return BPEVocabulary.of_text(TEXT, 300)


@pytest.mark.parametrize("kind", ["byte", "character", "bpe"])
def test_text_comes_back_and_json_keeps_the_vocabulary(kind):
    made = make(kind)
    tokens = made.encode(TEXT)
    assert tokens.max() < made.size
    assert made.decode(tokens) == TEXT
    read = vocabulary_from_json(made.to_json())
    assert read.size == made.size
    np.testing.assert_array_equal(read.encode(TEXT), tokens)
    assert made.decode(made.encode("")) == ""


def test_bytes_are_their_own_tokens():
    np.testing.assert_array_equal(ByteVocabulary().encode("aé"), [0x61, 0xC3, 0xA9])
    assert ByteVocabulary().decode([0x61, 0xC3]) == "a\ufffd"


def test_characters_are_sorted():
    made = CharacterVocabulary.of_text("banana\n")
    assert made.characters == "\nabn"
    np.testing.assert_array_equal(made.encode("nab"), [3, 1, 2])


@pytest.mark.parametrize("character", ["z", "\x00", "𝛽"])
def test_an_unknown_character_is_named(character):
    with pytest.raises(UserError, match="is not among the 3 characters") as raised:
        CharacterVocabulary.of_text("abc").encode(f"ab{character}c")
    assert repr(character) in str(raised.value)


def test_byte_pairs_encode_text_that_they_were_not_learned_from():
    made = BPEVocabulary.of_text("plain ascii text " * 50, 260)
    assert made.size == 260
    assert made.decode(made.encode(TEXT)) == TEXT


def test_a_byte_pair_vocabulary_must_hold_the_bytes():
    with pytest.raises(UserError, match="100 tokens cannot hold the 256 bytes"):
        BPEVocabulary.of_text(TEXT, 100)


def test_byte_pairs_are_the_same_in_every_process(tmp_path):
    # Hosts may learn them each for itself; tokens that differ would train on nonsense.
    program = (
        "import hashlib\n"
        "from research.data.text import read_corpus\n"
        "from research.data.vocabulary import BPEVocabulary\n"
        "made = BPEVocabulary.of_text(read_corpus('python_stdlib')[:300_000], 1000)\n"
        "print(hashlib.sha256(made.to_json().encode()).hexdigest())\n"
    )
    digests = set()
    for process in range(3):
        environment = {"RESEARCH_CACHE": str(tmp_path / str(process)), "PYTHONPATH": "."}
        ran = subprocess.run(
            [sys.executable, "-c", program],
            env=environment, capture_output=True, text=True, check=True, timeout=90,
        )  # fmt: skip
        digests.add(ran.stdout)
    assert len(digests) == 1


def test_learned_byte_pairs_are_read_from_the_cache(cache, monkeypatch):
    first = BPEVocabulary.of_text(TEXT, 300)
    monkeypatch.setattr(vocabulary, "_learn_byte_pairs", lambda *_: pytest.fail("learned again"))
    assert BPEVocabulary.of_text(TEXT, 300).to_json() == first.to_json()
    assert len(list((cache / "vocabularies").iterdir())) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "words"}', '{"kind": "character"}'])
def test_json_of_something_else_is_refused(text):
    with pytest.raises(UserError, match="vocabulary"):
        vocabulary_from_json(text)
