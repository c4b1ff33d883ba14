"""Shakespeare by role: every speaking role of every play is a client that keeps its speeches.

The federation of McMahan et al. 2017 (arXiv 1602.05629, §3), of 37 plays: roles with at least two
lines, the first 80 % of them for training. A line is a speech here. How many roles there are
depends on the edition and on how its names are read: 1,146 in the paper, 1,129 in LEAF (Caldas et
al. 2018, arXiv 1812.01097), 715 in TensorFlow Federated; here 1,117 of 1,347 have two speeches or
more (1,230 have two lines of verse or prose).
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from research.data.dataset import Example, one
from research.data.download import PublishedFile, find
from research.errors import UserError

# The plays, public domain, cut into speeches.
SHAKESPEARE_BY_ROLE = PublishedFile(
    "shakespeare_by_role.json.gz",
    "d26c1cbf627c1599d043a832af1c90e426b85b2377693684ce5ab36d9bdfa065",
    unpacked_sha256="1e798e5c09c23c9b27610827aaaace15f8028c01ef0eb6ca5735ef75a87a0f2a",
)


class Role(NamedTuple):
    """A role, as `play/name`, and its text in each split: speeches that end with a newline."""

    name: str
    train: str
    validation: str
    test: str  # empty where nothing is held out for it


def read_speeches() -> dict[str, list[str]]:
    """Every role's speeches in the order of the play. Raises UserError where the file is not at
    hand."""
    [content] = find("shakespeare-by-role", [SHAKESPEARE_BY_ROLE])
    corpus = json.loads(content)
    return {name: corpus["speeches"][name] for name in corpus["users"]}


def split_roles(speeches: dict[str, list[str]], validation: float, test: float) -> tuple[Role, ...]:
    """The roles with a speech for every split that is asked for; the others are left out.

    Of n speeches `validation` n and `test` n are held out, rounded down, but at least one each
    (none for 0): first the training speeches, then those of validation, then the test's. Raises
    UserError if nothing is held out.
    """
    if validation <= 0:
        raise UserError(
            "of shakespeare_by_role some speeches have to be held out: set "
            "--data.validation-fraction to 0.2, as in McMahan et al. 2017"
        )
    shares = (validation, test)
    roles = []
    for name, said in speeches.items():
        # The smallest share of a speech, so that 0.3 of 10 are 3.
        held_out = [max(1, int(len(said) * share + 1e-9)) if share else 0 for share in shares]
        ends = np.cumsum([len(said) - sum(held_out), *held_out])
        if ends[0] < 1:
            continue
        parts = (said[: ends[0]], said[ends[0] : ends[1]], said[ends[1] :])
        roles.append(Role(name, *("".join(f"{speech}\n" for speech in part) for part in parts)))
    return tuple(roles)


class RoleWindows:
    """Sequences of `context` tokens, each of one role; the targets are one place later.

    The windows of a role follow each other. The last ends with the role's text, and overlaps the
    one before it; a text that is shorter than a window is repeated until it fills one. So every
    role has a window, and each of its characters but the first is predicted.
    """

    def __init__(self, texts: list[np.ndarray], context: int):
        """`texts` are the tokens of each role, none empty."""
        needed = context + 1
        whole = [np.resize(text, max(len(text), needed)) for text in texts]
        starts, owners, begin = [], [], 0
        for role, text in enumerate(whole):
            last = len(text) - needed
            places = np.append(np.arange(0, last, context), last)
            starts.append(begin + places)
            owners.append(np.full(len(places), role))
            begin += len(text)
        self.tokens = np.concatenate(whole)
        self.context = context
        self.starts = np.concatenate(starts)
        self.owners = np.concatenate(owners)
        """int64 `[windows]`: the role of each."""
        self._offsets = np.arange(needed)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int, /) -> Example:
        return one(self, index)

    @property
    def targets(self) -> np.ndarray:
        """int32 `[windows, context]` of all."""
        return self.rows(np.arange(len(self)))["targets"]

    def rows(self, indexes: np.ndarray) -> Example:
        """`inputs` and `targets`, int32 `[rows, context]`."""
        windows = self.tokens[self.starts[indexes][:, None] + self._offsets]  # [rows, context + 1]
        return {
            "inputs": windows[:, :-1].astype(np.int32),
            "targets": windows[:, 1:].astype(np.int32),
        }


def windows_of(
    roles: tuple[Role, ...], split: str, context: int, encode: Callable[[str], np.ndarray]
) -> RoleWindows:
    """The windows of a split of all roles, in their order."""
    return RoleWindows([encode(getattr(role, split)) for role in roles], context)
