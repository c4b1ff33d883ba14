"""Text: splits as nanoGPT makes them, windows that cover every token, errors with numbers."""

import os

import numpy as np
import pytest

from research.data import vocabulary
from research.data.text import TextConfig, TokenWindows, read_corpus
from research.errors import UserError

needs_data = pytest.mark.skipif(
    "RESEARCH_DATA" not in os.environ, reason="RESEARCH_DATA is not set"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))


def test_training_windows_start_at_any_token_and_targets_are_the_next_one():
    source = TokenWindows(np.arange(10, dtype=np.uint8), context=4, stride=1)
    assert len(source) == 6
    np.testing.assert_array_equal(source[5]["inputs"], [5, 6, 7, 8])
    np.testing.assert_array_equal(source[5]["targets"], [6, 7, 8, 9])
    assert source[5]["inputs"].dtype == np.int32
    with pytest.raises(IndexError):
        source[6]
    with pytest.raises(IndexError):
        source[-1]


@pytest.mark.parametrize(("tokens", "windows"), [(4, 0), (5, 1), (8, 1), (9, 2), (10, 2)])
def test_held_out_windows_predict_each_token_at_most_once(tokens, windows):
    source = TokenWindows(np.arange(tokens), context=4, stride=4)
    assert len(source) == windows
    predicted = source.rows(np.arange(windows))["targets"].ravel()
    np.testing.assert_array_equal(predicted, np.arange(1, 4 * windows + 1))


@needs_data
def test_tiny_shakespeare_is_split_as_in_nanogpt():
    # nanoGPT, data/shakespeare_char/prepare.py: 65 characters, 1,003,854 and 111,540 tokens.
    dataset = TextConfig("tiny_shakespeare", vocabulary="character", context=64, batch=12).load()
    assert dataset.vocabulary is not None and dataset.vocabulary.size == 65
    assert dataset.specification.classes == 65 and dataset.specification.shape == (64,)
    assert len(dataset.train) == 1_003_854 - 64
    assert len(dataset.validation) == (111_540 - 1) // 64
    first = dataset.vocabulary.decode(dataset.train[0]["inputs"])
    assert first.startswith("First Citizen:\nBefore we proceed")
    assert dataset.test is dataset.validation and dataset.test_is_validation
    assert dataset.unit == "tokens"


def test_the_standard_library_needs_no_download_and_is_the_same_twice(monkeypatch):
    monkeypatch.delenv("RESEARCH_DATA", raising=False)
    dataset = TextConfig().load()
    assert dataset.digest == TextConfig().load().digest
    assert len(dataset.train) > 5_000_000
    text = read_corpus("python_stdlib")
    assert "# asyncio/base_events.py\n" in text and "# json/decoder.py\n" in text
    assert "site-packages/" not in text.partition("\n")[0]
    # Held out is a sample of the library, not the end of the alphabet.
    held_out = [line for line in text[int(0.9 * len(text)) :].split("\n") if line.endswith(".py")]
    initials = {line[2] for line in held_out if line.startswith("# ") and " " not in line[2:]}
    assert len(initials) >= 8


def test_a_file_is_taken_as_it_is(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("0123456789" * 10)
    dataset = TextConfig(str(path), context=4, validation_fraction=0.2, test_fraction=0.1).load()
    tokens = [source.tokens.tobytes().decode() for source in  # type: ignore[attr-defined]
              (dataset.train, dataset.validation, dataset.test)]  # fmt: skip
    assert [len(split) for split in tokens] == [70, 20, 10]
    assert "".join(tokens) == "0123456789" * 10
    assert not dataset.test_is_validation


def test_a_folder_is_read_in_an_order_that_does_not_depend_on_where_it_lies(tmp_path):
    for root in ("here", "elsewhere/deeper"):
        for name in ("a.txt", "b.md", "sub/c.py", "ignored.bin"):
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"text of {name}\n")
    here = read_corpus(str(tmp_path / "here"))
    assert here == read_corpus(str(tmp_path / "elsewhere/deeper"))
    assert "# sub/c.py\ntext of sub/c.py\n" in here and "ignored" not in here
    pattern = read_corpus(str(tmp_path / "here" / "*.txt"))
    assert pattern == "text of a.txt\n"


def test_byte_pair_tokens_are_kept(tmp_path, monkeypatch):
    path = tmp_path / "one.txt"
    path.write_text("the cat sat on the mat\n" * 100)
    config = TextConfig(str(path), vocabulary="bpe", vocabulary_size=262, context=4)
    first = config.load()
    assert first.specification.classes == 262
    monkeypatch.setattr(vocabulary.BPEVocabulary, "encode", lambda *_: pytest.fail("encoded again"))
    again = config.load()
    np.testing.assert_array_equal(again.train[3]["inputs"], first.train[3]["inputs"])
    for file in (tmp_path / "cache/data/tokens").iterdir():
        file.write_bytes(file.read_bytes()[:20])  # as a full disk would leave it
    monkeypatch.undo()
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
    np.testing.assert_array_equal(config.load().train[3]["inputs"], first.train[3]["inputs"])


def test_a_text_too_short_for_the_context_is_refused_with_the_numbers(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("x" * 1000)
    message = r"validation split .* has 100 tokens \(100 of 1000 characters\).*128 needs 129"
    with pytest.raises(UserError, match=message):
        TextConfig(str(path)).load()
    path.write_text("")
    with pytest.raises(UserError, match="training split .* has 0 tokens"):
        TextConfig(str(path)).load()


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no text at 'tiny_shakespear'"):
        TextConfig("tiny_shakespear").load()
    with pytest.raises(UserError, match="there is no text"):
        TextConfig(str(tmp_path)).load()
    latin = tmp_path / "latin.txt"
    latin.write_bytes("façade".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8 text: byte 2 of 6 is 0xe7"):
        TextConfig(str(latin)).load()


def test_splits_must_leave_something_to_train_on():
    with pytest.raises(UserError, match=r"0\.5.*0\.5.*below 1"):
        TextConfig(validation_fraction=0.5, test_fraction=0.5).load()
