"""How text becomes integer tokens, and tokens text again: bytes, characters, byte pairs."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from research.data.download import cache_folder, save_atomically
from research.errors import UserError

Tokens = np.ndarray | Sequence[int]

BYTE_PAIR_TRAINING_CHARACTERS = 16 * 2**20
"""Byte pairs are counted in no more than this many characters of the training text."""


class Vocabulary(Protocol):
    """A reversible map from text to tokens of 0 to `size - 1`."""

    @property
    def size(self) -> int:
        """How many tokens there are: the width of the logits."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Tokens `[tokens]`, in the smallest unsigned integers that hold them all.

        Raises `UserError` where the vocabulary has no token for a character.
        """
        ...

    def decode(self, tokens: Tokens) -> str:
        """The text of the tokens; bytes that make no character become U+FFFD."""
        ...

    def to_json(self) -> str:
        """JSON text that `vocabulary_from_json` reads back."""
        ...


class ByteVocabulary:
    """The 256 bytes of UTF-8: every text has tokens, and nothing is learned."""

    size = 256

    def encode(self, text: str) -> np.ndarray:
        """uint8 `[bytes of the text in UTF-8]`."""
        return np.frombuffer(text.encode(), np.uint8)

    def decode(self, tokens: Tokens) -> str:
        """The text; a sequence of bytes that is not UTF-8 becomes U+FFFD."""
        return bytes(np.asarray(tokens, np.uint8)).decode(errors="replace")

    def to_json(self) -> str:
        """JSON text that `vocabulary_from_json` reads back."""
        return json.dumps({"kind": "byte"})


class CharacterVocabulary:
    """The sorted characters of a text, one token each (65 in tiny Shakespeare, as in nanoGPT)."""

    def __init__(self, characters: str):
        """`characters` are the tokens, in order."""
        self.characters = characters
        self.size = len(characters)
        self._token = np.full(max(map(ord, characters), default=-1) + 1, -1, np.int64)
        self._token[[ord(character) for character in characters]] = np.arange(self.size)

    @classmethod
    def of_text(cls, text: str) -> "CharacterVocabulary":
        """The vocabulary of every character in `text`."""
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> np.ndarray:
        """Tokens `[characters]`; raises `UserError` naming the first unknown character."""
        # UTF-32 is an array of code points, so that the lookup is one NumPy gather.
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        known = points < len(self._token)
        tokens = np.where(known, self._token[np.where(known, points, 0)], -1)
        if len(tokens) and tokens.min() < 0:
            character = text[int(np.argmin(tokens >= 0))]
            raise UserError(
                f"character {character!r} is not among the {self.size} characters that the "
                "vocabulary was made from: leave it out, or train with --data.vocabulary byte"
            )
        return tokens.astype(smallest_unsigned(self.size))

    def decode(self, tokens: Tokens) -> str:
        """The text of the tokens."""
        return "".join(self.characters[int(token)] for token in tokens)

    def to_json(self) -> str:
        """JSON text that `vocabulary_from_json` reads back."""
        return json.dumps({"kind": "character", "characters": self.characters})


class BPEVocabulary:
    """Byte pairs that occur most often, merged: byte-level BPE as in GPT-2.

    Sennrich, Haddow and Birch 2016, "Neural Machine Translation of Rare Words with Subword Units"
    (arXiv 1508.07909); over bytes as in Radford et al. 2019, "Language Models are Unsupervised
    Multitask Learners". Trained and applied by Hugging Face `tokenizers`.
    """

    def __init__(self, tokenizer: Any):
        """`tokenizer` is a `tokenizers.Tokenizer`."""
        self._tokenizer = tokenizer
        self.size: int = tokenizer.get_vocab_size()

    @classmethod
    def of_text(cls, text: str, size: int) -> "BPEVocabulary":
        """Learns up to `size` tokens from `text`, or reads what it learned before from the cache.

        The result depends on `text` and `size` alone. A short text may hold too few pairs: `size`
        of the result is then smaller.
        """
        if size < 256:
            raise UserError(
                f"a BPE vocabulary of {size} tokens cannot hold the 256 bytes: "
                "set --data.vocabulary-size to 257 or more"
            )
        text = text[:BYTE_PAIR_TRAINING_CHARACTERS]
        digest = hashlib.sha256(f"bpe {size}\n".encode() + text.encode()).hexdigest()
        cached = cache_folder() / "vocabularies" / f"{digest}.json"
        if cached.is_file():
            vocabulary = vocabulary_from_json(cached.read_text())
            assert isinstance(vocabulary, cls)
            return vocabulary
        vocabulary = cls(_learn_byte_pairs(text, size))
        save_atomically(cached, vocabulary.to_json().encode())
        return vocabulary

    def encode(self, text: str) -> np.ndarray:
        """Tokens; a long text is cut after lines into pieces that are encoded side by side."""
        encodings = self._tokenizer.encode_batch_fast(list(_pieces(text)), add_special_tokens=False)
        kind = smallest_unsigned(self.size)
        return np.concatenate([np.zeros(0, kind)] + [np.array(e.ids, kind) for e in encodings])

    def decode(self, tokens: Tokens) -> str:
        """The text; a sequence of bytes that is not UTF-8 becomes U+FFFD."""
        return self._tokenizer.decode([int(token) for token in tokens])

    def to_json(self) -> str:
        """JSON text that `vocabulary_from_json` reads back."""
        return json.dumps({"kind": "bpe", "tokenizer": json.loads(self._tokenizer.to_str())})


def vocabulary_from_json(text: str) -> Vocabulary:
    """The vocabulary that wrote `text` with `to_json`; raises `UserError` for anything else."""
    try:
        fields = json.loads(text)
        kind: Literal["byte", "character", "bpe"] = fields["kind"]
        if kind == "byte":
            return ByteVocabulary()
        if kind == "character":
            return CharacterVocabulary(fields["characters"])
        if kind == "bpe":
            from tokenizers import Tokenizer

            return BPEVocabulary(Tokenizer.from_str(json.dumps(fields["tokenizer"])))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"this is not a vocabulary that a run has written: {error}") from error
    raise UserError(f"vocabulary of kind {kind!r} is unknown: byte, character and bpe are known")


def smallest_unsigned(size: int) -> type[np.unsignedinteger]:
    """The smallest unsigned integer type that holds 0 to `size - 1`."""
    if size <= 2**8:
        return np.uint8
    return np.uint16 if size <= 2**16 else np.uint32


def _learn_byte_pairs(text: str, size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_pieces(text), trainer)
    return tokenizer


def _pieces(text: str, characters: int = 2**16) -> Iterator[str]:
    """Cuts text after a line, about every so many characters; joined, the pieces are the text."""
    start = 0
    while start < len(text):
        line_end = text.find("\n", start + characters) + 1
        end = line_end if line_end > 0 else len(text)
        yield text[start:end]
        start = end
