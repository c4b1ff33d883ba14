"""Partitioners: they deal the training examples out to clients, by label, by number, by feature.

Every example goes to exactly one client (`natural` may leave small clients out, see `minimum`), and
no client is empty. The result is a function of the labels and the config: `RandomState` has frozen
streams (NEP 19), so it is the same on every version of NumPy.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from research.data.clients import NOBODY, Clients
from research.data.dataset import NaturalClients
from research.data.shift import ImageShift
from research.errors import UserError

ATTEMPTS = 100
"""Draws of `dirichlet_by_label` until every client has its minimum."""

BY_LABEL = ("shards", "similarity", "dirichlet", "dirichlet_by_label")
"""Kinds that need a label of each example."""

Kind = Literal[
    "iid",
    "shards",
    "similarity",
    "dirichlet",
    "dirichlet_by_label",
    "quantity",
    "feature",
    "natural",
]


@dataclass(frozen=True)
class PartitionConfig:
    """Who has which training example."""

    kind: Kind = "iid"
    """iid: equal parts of a shuffle. shards: sorted by label and cut (McMahan 2017). similarity:
    equal parts, partly of a shuffle and partly sorted by label (Karimireddy 2020). dirichlet:
    equal parts, each with a mixture of labels of its own (Hsu 2019). dirichlet_by_label: each label
    is shared out by a mixture of clients, so sizes differ too (Yurochkin 2019). quantity: like iid,
    of unequal sizes. feature: images turned, blurred and darkened by client; tables cut along a
    column. natural: the data set's own clients."""
    clients: int = 100
    """How many there are; natural has its own number."""
    alpha: float = 0.5
    """Of the Dirichlet distributions: towards 0 a client has a single label (or almost all of the
    examples, for quantity), towards infinity all clients are alike."""
    shards_per_client: int = 2
    """For shards: how many each client gets, and so about how many labels."""
    similarity: float = 0.1
    """For similarity: share of each client's examples that are of a shuffle, from 0 (all sorted by
    label) to 1 (iid)."""
    minimum: int = 1
    """Examples that each client has at least. natural leaves out clients with fewer;
    dirichlet_by_label draws again until all have them; the others give them to all."""
    column: str = ""
    """For feature, of a table: name or number of the column along which it is cut; empty takes the
    first principal component."""
    shift: ImageShift = ImageShift()
    """For feature, of images: the strongest that a client does to its images."""
    seed: int = 0
    """Of the draws, for themselves: the same clients in every run, whatever the seed of the run."""

    def check(self) -> None:
        """Raises UserError for values that no partition can have."""
        for name in ("clients", "shards_per_client", "minimum"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} cannot be: set 1 or more")
        if not 0 <= self.similarity <= 1:
            raise UserError(
                f"similarity {self.similarity} is no share: set a number from 0 (0.1 for 10 %) to 1"
            )
        if not 0 < self.alpha < np.inf:
            raise UserError(
                f"alpha {self.alpha} is no concentration: set a number above 0 (0.1 for clients "
                "that differ much, 100 for clients nearly alike)"
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed {self.seed} is outside of 0 to {2**32 - 1}")
        self.shift.check()


def partition(
    labels: np.ndarray,
    classes: int,
    config: PartitionConfig,
    *,
    natural: NaturalClients | None = None,
    scores: np.ndarray | None = None,
) -> Clients:
    """Deals out examples with `labels` (integers below `classes`) as `config` says.

    `labels` is `[examples]`, or `[examples, ...]` for text, whose windows have many. `natural` are
    the data set's own clients, for that kind. For `feature`, `scores` `[examples]` orders them, and
    each client gets a range of equally many; None deals as iid (what differs is then done to the
    images, see `shift`). Raises UserError where there are too few examples, or a label is with no
    client.
    """
    config.check()
    if labels.ndim == 1:
        _check_labels(labels, classes)
    elif config.kind in BY_LABEL:
        raise UserError(
            f"{config.kind} deals out examples by their label, and a window of text has none: use "
            "natural, iid or quantity"
        )
    if config.kind == "natural":
        return _natural(labels, classes, config, natural)

    examples, clients = len(labels), config.clients
    if clients * config.minimum > examples:
        raise UserError(
            f"{clients} clients of at least {config.minimum} examples need "
            f"{clients * config.minimum}, and there are {examples}: use "
            f"{max(examples // config.minimum, 1)} clients or fewer, or a smaller minimum"
        )
    random = np.random.RandomState(config.seed)
    if config.kind == "shards":
        owners = _shards(labels, config, random)
    elif config.kind == "similarity":
        owners = _similar(labels, config, random)
    elif config.kind == "dirichlet":
        counts = _mixtures_of_labels(np.bincount(labels, minlength=classes), config, random)
        owners = by_counts(labels, counts, random)
    elif config.kind == "dirichlet_by_label":
        counts = _mixtures_of_clients(np.bincount(labels, minlength=classes), config, random)
        owners = by_counts(labels, counts, random)
    elif config.kind == "feature" and scores is not None:
        owners = _dealt(np.argsort(scores, kind="stable"), _even(examples, clients))
    elif config.kind == "quantity":
        # Li et al. 2022 (arXiv 2102.02079): sizes by Dir(alpha); beyond the minimum, here.
        share = np.exp(_log_dirichlet(random, np.full(clients, config.alpha)))
        sizes = config.minimum + cut(examples - clients * config.minimum, share, 0.5)
        owners = _dealt(random.permutation(examples), sizes)
    else:
        owners = _dealt(random.permutation(examples), _even(examples, clients))
    made = Clients.of(owners, labels, classes, tuple(map(str, range(clients))))
    if (smallest := made.sizes.min()) < config.minimum:  # unequal shards
        raise UserError(
            f"the smallest of {clients} clients has {smallest} of {examples} examples, fewer than "
            f"the minimum {config.minimum}: use fewer clients or a smaller minimum"
        )
    return made


def _check_labels(labels: np.ndarray, classes: int) -> None:
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels {labels.min()} to {labels.max()} of {classes} classes")
    missing = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    if len(missing):
        named = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise UserError(
            f"of {classes} labels {len(missing)} ({named}) are with no client, since none of the "
            f"{len(labels)} training examples has them: train on more data, or on fewer classes"
        )


def _natural(
    labels: np.ndarray, classes: int, config: PartitionConfig, natural: NaturalClients | None
) -> Clients:
    if natural is None:
        raise UserError(
            "this data set has no clients of its own: use heart_disease or shakespeare_by_role, or "
            "another kind of partition"
        )
    sizes = np.bincount(natural.train, minlength=len(natural.names))
    kept = np.flatnonzero(sizes >= config.minimum)
    if not len(kept):
        raise UserError(
            f"none of the {len(sizes)} clients has {config.minimum} examples, the largest has "
            f"{sizes.max(initial=0)}: set a smaller minimum"
        )
    number = np.full(len(sizes), NOBODY)
    number[kept] = np.arange(len(kept))
    clients = Clients.of(
        number[natural.train], labels, classes, tuple(natural.names[client] for client in kept)
    )
    if labels.ndim == 1 and (missing := np.flatnonzero(clients.histogram.sum(axis=0) == 0)).size:
        raise UserError(
            f"label {missing[0]} is with none of the {len(kept)} clients that have "
            f"{config.minimum} examples: set a smaller minimum"
        )
    return clients


def _shards(
    labels: np.ndarray, config: PartitionConfig, random: np.random.RandomState
) -> np.ndarray:
    """McMahan et al. 2017 (arXiv 1602.05629, §3): sort by label, cut into equal shards, and give
    each client as many, at random."""
    shards = config.clients * config.shards_per_client
    if shards > len(labels):
        raise UserError(
            f"{config.clients} clients of {config.shards_per_client} shards need {shards} "
            f"examples, and there are {len(labels)}: use fewer clients or shards_per_client"
        )
    client = random.permutation(shards) // config.shards_per_client  # [shards]
    owners = np.empty(len(labels), np.int64)
    owners[np.argsort(labels, kind="stable")] = np.repeat(client, _even(len(labels), shards))
    return owners


def _similar(
    labels: np.ndarray, config: PartitionConfig, random: np.random.RandomState
) -> np.ndarray:
    """Karimireddy et al. 2020 (arXiv 1910.06378, §7): of each client's examples a share of a
    shuffle; the rest is sorted by label and cut, and each client gets a piece, at random."""
    sizes = _even(len(labels), config.clients)
    shared = np.rint(config.similarity * sizes).astype(np.int64)
    some, rest = np.split(random.permutation(len(labels)), [shared.sum()])
    turn = random.permutation(config.clients)
    owners = np.empty(len(labels), np.int64)
    owners[some] = np.repeat(np.arange(config.clients), shared)
    owners[rest[np.argsort(labels[rest], kind="stable")]] = np.repeat(turn, (sizes - shared)[turn])
    return owners


def _mixtures_of_labels(
    totals: np.ndarray, config: PartitionConfig, random: np.random.RandomState
) -> np.ndarray:
    """int64 `[clients, classes]`: examples of each label, for clients of equal size.

    Hsu, Qi and Brown 2019 (arXiv 1909.06335): client k draws q_k ~ Dir(alpha p), p the labels
    of all, and its examples by q_k, without replacement. Where a label has run out, q_k goes on
    over those that are left; so late clients have what is left, and none is empty.
    """
    left = totals.copy()
    sizes = _even(int(totals.sum()), config.clients)
    counts = np.zeros((config.clients, len(totals)), np.int64)
    for client, size in enumerate(sizes):
        logarithms = _log_dirichlet(random, config.alpha * totals / totals.sum())
        while (wanted := size - counts[client].sum()) > 0:
            # Over the labels that are left, in logarithms: at small alpha all but one q underflow.
            some = np.where(left > 0, logarithms, -np.inf)
            q = np.exp(some - some.max())
            drawn = np.minimum(random.multinomial(wanted, q / q.sum()), left)
            counts[client] += drawn
            left -= drawn
    return counts


def _mixtures_of_clients(
    totals: np.ndarray, config: PartitionConfig, random: np.random.RandomState
) -> np.ndarray:
    """int64 `[clients, classes]`: examples of each label, for clients of any size.

    Yurochkin et al. 2019 (arXiv 1905.12022): label y is shared out by p_y ~ Dir(alpha) over the
    clients. All are drawn again while a client has less than the minimum, as Li et al. 2022 do.
    """
    counts = np.empty((config.clients, len(totals)), np.int64)
    best = 0
    for _ in range(ATTEMPTS):
        for label, total in enumerate(totals):
            share = np.exp(_log_dirichlet(random, np.full(config.clients, config.alpha)))
            counts[:, label] = cut(int(total), share, 0.5)
        smallest = int(counts.sum(axis=1).min())
        if smallest >= config.minimum:
            return counts
        best = max(best, smallest)
    raise UserError(
        f"in {ATTEMPTS} draws at alpha {config.alpha} there was always one of {config.clients} "
        f"clients with fewer than {config.minimum} examples (at best it had {best}): set a larger "
        "alpha, fewer clients or a smaller minimum, or the kind dirichlet, which has equal sizes"
    )


def _log_dirichlet(random: np.random.RandomState, alpha: np.ndarray) -> np.ndarray:
    """Logarithms of a draw from Dir(alpha), `[len(alpha)]`.

    By Gamma(a) = Gamma(a + 1) U^(1/a), in logarithms: small gammas themselves underflow to 0 / 0.
    """
    uniform = 1 - random.uniform(size=alpha.shape)  # above 0
    logarithms = np.log(random.standard_gamma(alpha + 1)) + np.log(uniform) / alpha
    logarithms -= logarithms.max()
    return logarithms - np.log(np.exp(logarithms).sum())


def by_counts(labels: np.ndarray, counts: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Owners `[examples]` so that client c has `counts[c, label]` examples of each label; which
    ones, is drawn. Columns of `counts` `[clients, classes]` add up to the labels there are."""
    owners = np.empty(len(labels), np.int64)
    for label in range(counts.shape[1]):
        mine = random.permutation(np.flatnonzero(labels == label))
        owners[mine] = np.repeat(np.arange(len(counts)), counts[:, label])
    return owners


def cut(total: int, shares: np.ndarray, start: float) -> np.ndarray:
    """int64 `[parts]`, adding up to `total`: each within 1 of `total` times its share.

    `shares` are positive, of any sum; `start`, from 0 to below 1, decides who is rounded up.
    """
    ends = np.cumsum(shares) / np.sum(shares)
    ends[-1] = 1.0
    return np.diff(np.floor(ends * total + start).astype(np.int64), prepend=0)


def _even(total: int, parts: int) -> np.ndarray:
    return np.diff(np.arange(parts + 1) * total // parts)


def _dealt(order: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Owners `[examples]`: the first `sizes[0]` examples of `order` are client 0's, and so on."""
    owners = np.empty(len(order), np.int64)
    owners[order] = np.repeat(np.arange(len(sizes)), sizes)
    return owners
