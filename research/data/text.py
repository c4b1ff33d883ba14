"""Text as tokens: a corpus, its splits, and the windows of tokens that are its examples."""

import glob
import hashlib
import io
import os
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from research.data.dataset import Dataset, Example, NaturalClients, Source, one
from research.data.download import PublishedFile, cache_folder, find, save_atomically
from research.data.roles import read_speeches, split_roles, windows_of
from research.data.vocabulary import (
    BPEVocabulary,
    ByteVocabulary,
    CharacterVocabulary,
    Vocabulary,
)
from research.errors import UserError

if TYPE_CHECKING:
    from research.models.specification import Specification

# Karpathy 2015, the corpus of char-rnn and of nanoGPT: 1,115,394 characters, public domain.
TINY_SHAKESPEARE = PublishedFile(
    "input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
)
BY_ROLE = "shakespeare_by_role"
TEXT_SUFFIXES = (".txt", ".py", ".md")

# Of the standard library: tests and demonstrations, what others installed, what a build wrote.
_SKIPPED_FOLDERS = {
    *("test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"),
    *("site-packages", "dist-packages"),
}
_SKIPPED_PREFIXES = ("config-", "_sysconfigdata")


@dataclass(frozen=True)
class TextConfig:
    """A text, cut into sequences of tokens."""

    source: str = "python_stdlib"
    """python_stdlib (the .py files of the running Python's library, 10 MB, no download),
    tiny_shakespeare, shakespeare_by_role (whose roles are clients, each split for itself), or a
    path: a file, a folder (all .txt, .py and .md under it), or a pattern such as
    'books/**/*.txt'."""
    vocabulary: Literal["byte", "character", "bpe"] = "byte"
    """What a token is: one of 256 bytes, a character of the text, or a learned run of bytes."""
    vocabulary_size: int = 4096
    """Tokens to learn, for bpe only."""
    context: int = 128
    """Tokens a sequence."""
    batch: int = 32
    """Sequences a step, over all devices."""
    validation_fraction: float = 0.1
    """Share of the text's characters held out for validation, after the training text."""
    test_fraction: float = 0.0
    """Share held out for the test, at the end; 0 tests on the validation text."""

    def load(self) -> Dataset:
        """Reads the text, splits it by characters and encodes it.

        The splits are contiguous: training, validation, test. With the defaults the first 90 % of
        the characters train, as in nanoGPT. A training example starts at any token; held-out ones
        follow each other, so that each token is predicted at most once. Raises `UserError` for a
        text that is missing, is not UTF-8, or is too short for the context. For shakespeare_by_role
        see `research.data.roles`.
        """
        held_out = self.validation_fraction + self.test_fraction
        if min(self.validation_fraction, self.test_fraction) < 0 or held_out >= 1:
            raise UserError(
                f"validation fraction {self.validation_fraction} and test fraction "
                f"{self.test_fraction} leave nothing to train on: their sum must be below 1"
            )
        if self.context < 1:
            raise UserError(f"a context of {self.context} tokens cannot be: set 1 or more")

        if self.source == BY_ROLE:
            return self._load_roles()
        text = read_corpus(self.source)
        train_end = int(len(text) * (1 - self.validation_fraction - self.test_fraction))
        validation_end = int(len(text) * (1 - self.test_fraction))
        train_text = text[:train_end]
        vocabulary = self._vocabulary(text, train_text)

        def windows(split: str, part: str, stride: int) -> TokenWindows:
            tokens = _encode(vocabulary, part)
            if len(tokens) < self.context + 1:
                raise UserError(
                    f"the {split} split of {self.source} has {len(tokens)} tokens "
                    f"({len(part)} of {len(text)} characters), and a sequence of --data.context "
                    f"{self.context} needs {self.context + 1}: set a shorter context, a larger "
                    f"{split} share, or give more text"
                )
            return TokenWindows(tokens, self.context, stride)

        train = windows("training", train_text, stride=1)
        validation = windows("validation", text[train_end:validation_end], stride=self.context)
        test = validation
        if self.test_fraction:
            test = windows("test", text[validation_end:], stride=self.context)
        return self._dataset(text, vocabulary, train, validation, test)

    def _load_roles(self) -> Dataset:
        roles = split_roles(read_speeches(), self.validation_fraction, self.test_fraction)
        text = read_corpus(BY_ROLE)
        vocabulary = self._vocabulary(text, "".join(role.train for role in roles))
        train, validation = (
            windows_of(roles, split, self.context, vocabulary.encode)
            for split in ("train", "validation")
        )
        test = validation
        if self.test_fraction:
            test = windows_of(roles, "test", self.context, vocabulary.encode)
        owned = NaturalClients(
            tuple(role.name for role in roles), train.owners, validation.owners, test.owners
        )
        return self._dataset(text, vocabulary, train, validation, test, owned)

    def _dataset(
        self,
        text: str,
        vocabulary: Vocabulary,
        train: Source,
        validation: Source,
        test: Source,
        clients: NaturalClients | None = None,
    ) -> Dataset:
        from research.models.specification import Specification  # imports JAX

        return Dataset(
            name=self.source,
            train=train,
            validation=validation,
            test=test,
            specification=Specification(shape=(self.context,), classes=vocabulary.size),
            unit="tokens",
            vocabulary=vocabulary,
            digest=hashlib.sha256(text.encode()).hexdigest(),
            test_is_validation=not self.test_fraction,
            clients=clients,
        )

    def specification(self) -> "Specification":
        """The shapes of the text's examples. Reads no data, but for the characters of a text."""
        from research.models.specification import Specification  # imports JAX

        sizes = {"byte": ByteVocabulary().size, "bpe": self.vocabulary_size}
        if self.vocabulary == "character":
            sizes["character"] = CharacterVocabulary.of_text(read_corpus(self.source)).size
        return Specification(shape=(self.context,), classes=sizes[self.vocabulary])

    def _vocabulary(self, text: str, train_text: str) -> Vocabulary:
        if self.vocabulary == "byte":
            return ByteVocabulary()
        if self.vocabulary == "character":
            # Of the whole text, as in nanoGPT: a character seen only in validation has a token.
            return CharacterVocabulary.of_text(text)
        return BPEVocabulary.of_text(train_text, self.vocabulary_size)


class TokenWindows:
    """Sequences of `context` tokens; the targets are the same tokens one place later."""

    def __init__(self, tokens: np.ndarray, context: int, stride: int):
        """Window `i` starts at token `i * stride` of `tokens`, `[tokens]` of any integer type."""
        self.tokens = tokens
        self.context = context
        self.stride = stride
        self._offsets = np.arange(context + 1)

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - 1 - self.context) // self.stride + 1)

    def __getitem__(self, index: int, /) -> Example:
        return one(self, index)

    def rows(self, indexes: np.ndarray) -> Example:
        """`inputs` and `targets`, int32 `[rows, context]`."""
        starts = np.asarray(indexes, np.int64)[:, None] * self.stride
        windows = self.tokens[starts + self._offsets]  # [rows, context + 1]
        return {
            "inputs": windows[:, :-1].astype(np.int32),
            "targets": windows[:, 1:].astype(np.int32),
        }


def read_corpus(source: str) -> str:
    """The whole text of a source, as `TextConfig.source` describes it.

    Several files follow each other in the order of a hash of their paths, each after a line that
    names it: in alphabetical order the end of the text, which is held out, would be a subject of
    its own. A single file is left as it is. Raises `UserError` for a source that is not there.
    """
    if source == "tiny_shakespeare":
        [content] = find("tinyshakespeare", [TINY_SHAKESPEARE])
        return content.decode()
    if source == BY_ROLE:
        return "".join(f"{speech}\n" for said in read_speeches().values() for speech in said)
    if source == "python_stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        return _join(root, _library_files(root))

    path = Path(source).expanduser()
    if path.is_file():
        return _decode(path, path.read_bytes())
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES]
    else:
        files = [Path(file) for file in glob.glob(str(path), recursive=True)]
    files = [file for file in files if file.is_file()]
    if not files:
        raise UserError(
            f"there is no text at {source!r}: --data.source is python_stdlib, tiny_shakespeare, "
            f"{BY_ROLE}, a file, a folder with {', '.join(TEXT_SUFFIXES)} files, or a pattern that "
            "matches files"
        )
    if len(files) == 1:
        return _decode(files[0], files[0].read_bytes())
    return _join(Path(os.path.commonpath([file.parent for file in files])), files)


def _library_files(root: Path) -> Iterable[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if name not in _SKIPPED_FOLDERS and not name.startswith(_SKIPPED_PREFIXES)
        ]
        for name in names:
            if name.endswith(".py") and not name.startswith(_SKIPPED_PREFIXES):
                yield Path(folder, name)


def _join(root: Path, files: Iterable[Path]) -> str:
    names = {file.relative_to(root).as_posix(): file for file in files}
    if not names:
        raise UserError(f"there are no source files in {root}: set --data.source to another text")
    parts = []
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        parts += [f"# {name}\n", _decode(names[name], names[name].read_bytes()), "\n"]
    return "".join(parts)


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: byte {error.start} of {len(content)} is "
            f"0x{content[error.start]:02x}; convert the file or leave it out"
        ) from error


def _encode(vocabulary: Vocabulary, text: str) -> np.ndarray:
    """Tokens of a split; those of byte pairs, which take seconds, are kept in the cache."""
    if not isinstance(vocabulary, BPEVocabulary):
        return vocabulary.encode(text)
    digest = hashlib.sha256(vocabulary.to_json().encode() + text.encode()).hexdigest()
    cached = cache_folder() / "data" / "tokens" / f"{digest}.npy"
    try:
        return np.load(cached, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or cut short: encode it again
        tokens = vocabulary.encode(text)
    file = io.BytesIO()
    np.save(file, tokens, allow_pickle=False)
    save_atomically(cached, file.getvalue())
    return tokens
