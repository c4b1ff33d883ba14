"""Roles of plays: their number, their split, and windows that stay within a role."""

import os

import numpy as np
import pytest

from research.data.roles import RoleWindows, read_speeches, split_roles
from research.data.text import TextConfig
from research.errors import UserError

needs_data = pytest.mark.skipif(
    "RESEARCH_DATA" not in os.environ, reason="RESEARCH_DATA is not set"
)


@needs_data
def test_shakespeare_by_role():
    """McMahan et al. 2017 count 1,146 roles, with 3,564,579 and 870,014 characters, in the edition
    and by the names that they have; so near to that come these."""
    speeches = read_speeches()
    assert len(speeches) == 1347 and sum(map(len, speeches.values())) == 30_913
    roles = split_roles(speeches, 0.2, 0.0)
    assert len(roles) == sum(len(said) >= 2 for said in speeches.values()) == 1117
    characters = [
        sum(len(getattr(role, split)) for role in roles) for split in ("train", "validation")
    ]
    np.testing.assert_allclose(characters, (3_564_579, 870_014), rtol=0.04)

    config = TextConfig(
        "shakespeare_by_role", vocabulary="character", context=80, validation_fraction=0.2
    )
    dataset = config.load()
    assert dataset.vocabulary is not None and dataset.clients is not None
    assert dataset.specification == config.specification()
    assert dataset.specification.classes == 77 and dataset.specification.shape == (80,)
    assert dataset.test is dataset.validation and dataset.test_is_validation
    assert len(dataset.clients.names) == 1117
    for source, owners in (
        (dataset.train, dataset.clients.train),
        (dataset.validation, dataset.clients.validation),
    ):
        assert len(source) == len(owners)
        assert set(owners) == set(range(1117))  # every role has a window to train on and to test on
    hamlet = dataset.clients.names.index("Hamlet/HAMLET")
    first = int(np.flatnonzero(dataset.clients.train == hamlet)[0])
    said = dataset.vocabulary.decode(dataset.train[first]["inputs"])
    assert said.startswith("[Aside]  A little more than kin, and less than kind.\nNot so, my lord;")


def test_the_first_speeches_train_and_the_last_are_held_out():
    speeches = {name: [f"{name}{n}" for n in range(count)] for name, count in
                {"a": 1, "b": 2, "c": 3, "d": 14, "e": 15}.items()}  # fmt: skip
    roles = {role.name: role for role in split_roles(speeches, 0.2, 0.0)}
    assert set(roles) == {"b", "c", "d", "e"}
    assert roles["b"] == ("b", "b0\n", "b1\n", "")
    assert roles["c"].train == "c0\nc1\n"
    held_out = [role.validation.count("\n") for role in roles.values()]
    assert held_out == [1, 1, 2, 3]  # a fifth, rounded down, but one
    both = split_roles(speeches, 0.2, 0.1)
    assert [role.name for role in both] == ["c", "d", "e"]
    assert both[0] == ("c", "c0\n", "c1\n", "c2\n")
    assert both[2].validation == "e11\ne12\ne13\n" and both[2].test == "e14\n"


def test_something_has_to_be_held_out():
    with pytest.raises(UserError, match=r"set --data.validation-fraction to 0\.2"):
        split_roles({"a": ["x", "y"]}, 0.0, 0.0)


@pytest.mark.parametrize(
    ("length", "windows"), [(1, 1), (4, 1), (5, 1), (6, 2), (9, 2), (10, 3), (13, 3)]
)
def test_windows_predict_every_token_but_the_first(length, windows):
    source = RoleWindows([np.arange(length)], context=4)
    assert len(source) == windows
    rows = source.rows(np.arange(windows))
    assert set(rows["targets"].ravel()) | {0} == set(range(length))
    if length >= 5:
        np.testing.assert_array_equal(rows["targets"], rows["inputs"] + 1)
    assert source[0]["inputs"].dtype == np.int32
    np.testing.assert_array_equal(source.targets, rows["targets"])
    with pytest.raises(IndexError):
        source[windows]


def test_windows_stay_within_a_role_and_a_short_one_is_repeated():
    texts = [np.full(9, 1), np.array([2, 3], np.uint8), np.full(30, 4)]
    source = RoleWindows(texts, context=4)
    assert source.owners.tolist() == [0, 0, 1] + [2] * 8
    rows = source.rows(np.arange(len(source)))
    assert rows["inputs"][2].tolist() == [2, 3, 2, 3] and rows["targets"][2].tolist() == [
        3,
        2,
        3,
        2,
    ]
    for role, value in ((0, 1), (2, 4)):
        assert set(rows["inputs"][source.owners == role].ravel()) == {value}
        assert set(rows["targets"][source.owners == role].ravel()) == {value}
