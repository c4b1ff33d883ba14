"""Evaluation of an ensemble: its members, all ways to combine them, and how certain each is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.errors import RunError
from research.learning.ensemble import Predictions
from research.learning.ensemble.combination import Rule, combination
from research.training.combiners import Combiner, stacked, weighted, weights
from research.training.uncertainty import (
    Answers,
    Reliability,
    aupr,
    auroc,
    disagreement,
    divergence,
)

MEMBERS = "a member"
COMBINED: tuple[Rule, ...] = ("mean", "product", "majority")


class Answered(NamedTuple):
    """What members say of a batch, in NumPy."""

    log_p: np.ndarray  # float32 [members, n, classes], of those that learn
    labels: np.ndarray  # [n]


class Judged(NamedTuple):
    """Of a split."""

    members: Answers  # [members, n]
    first: Answers  # [members, n]: of the mean of the first 1, 2, ...
    combined: dict[str, Answers]  # [n] each
    disagreement: np.ndarray  # [n]
    divergence: np.ndarray  # [n]

    @classmethod
    def of(cls, answered: Answered, combiners: dict[str, Combiner]) -> "Judged":
        """Of a batch."""
        log_p, labels = answered
        mean = combiners["mean"]
        first = np.stack([mean(log_p[: m + 1]) for m in range(len(log_p))])
        return cls(
            Answers.of(log_p, labels),
            Answers.of(first, labels),
            {name: Answers.of(combine(log_p), labels) for name, combine in combiners.items()},
            disagreement(log_p),
            divergence(log_p),
        )

    @classmethod
    def joined(cls, parts: Sequence["Judged"]) -> "Judged":
        """Of all batches. Raises RunError for none."""
        if not parts:
            raise RunError("the split to evaluate holds no example: give it more of the data")
        return cls(
            Answers.joined([part.members for part in parts]),
            Answers.joined([part.first for part in parts]),
            {n: Answers.joined([p.combined[n] for p in parts]) for n in parts[0].combined},
            np.concatenate([part.disagreement for part in parts]),
            np.concatenate([part.divergence for part in parts]),
        )


def answers(
    predict: Callable[[Any, Any], Predictions],
    state: Any,
    batches: Iterable[dict[str, jax.Array]],
    examples: int,
) -> Iterator[Answered]:
    """Of every batch, of so many `examples` in all (what pads the last one is left out), and of the
    members that learn."""
    for batch in batches:
        log_p, targets = jax.device_get(predict(state, batch))
        learns = ~np.isnan(log_p[:, 0]).reshape(len(log_p), -1).any(axis=-1)
        there = np.arange(len(targets)) < examples
        examples -= len(targets)
        yield Answered(
            log_p[learns][:, there].reshape(learns.sum(), -1, log_p.shape[-1]),
            targets[there].reshape(-1),
        )


def combiners(validation: Sequence[Answered], stacking: bool) -> dict[str, Combiner]:
    """All by name; those that are learned, on `validation`: with `stacking` a regression, too."""

    def fixed(rule: Rule) -> Combiner:
        together = combination(rule).together
        return lambda log_p: np.asarray(together(jnp.asarray(log_p)))

    made: dict[str, Combiner] = {rule: fixed(rule) for rule in COMBINED}
    of_labels = [
        np.take_along_axis(log_p, labels[None, :, None], axis=-1)[..., 0]
        for log_p, labels in validation
    ]
    made["weighted"] = weighted(weights(np.concatenate(of_labels, axis=1)))
    if stacking:
        log_p = np.concatenate([each.log_p for each in validation], axis=1)
        made["stacked"] = stacked(log_p, np.concatenate([each.labels for each in validation]))
    return made


def evaluate_ensemble(
    test: Iterable[Answered],
    validation: Sequence[Answered],
    outside: Iterable[Answered] | None,
    stacking: bool,
) -> dict[str, Any]:
    """What `research evaluate` writes down of an ensemble: `combinations`, of the members in the
    mean (`a member`), the best of them by validation and of every combination `nll`, `error`,
    `brier`, `ece`, `ece_adaptive` and, where there is an `outside`, `auroc` and `aupr` by entropy;
    these of the first 1, 2, ... members together in `by_members`; `disagreement` and `divergence`
    of pairs of members, and the `gain` of the mean over a member (nats)."""
    ways = combiners(validation, stacking)
    judged = Judged.joined([Judged.of(each, ways) for each in test])
    strange = Judged.joined([Judged.of(each, ways) for each in outside]) if outside else None
    best = _best(validation)

    def row(of: Callable[[Judged], Answers]) -> dict[str, float]:
        inside = of(judged)
        made = inside.summary()
        if strange is not None:
            scores = of(strange).entropy, inside.entropy
            made |= {"auroc": auroc(*scores), "aupr": aupr(*scores)}
        return made

    count = len(judged.members.correct)
    each = [row(lambda judged, m=m: judged.members[m]) for m in range(count)]  # type: ignore[misc]
    a_member = {name: float(np.mean([own[name] for own in each])) for name in each[0]}
    table = {MEMBERS: a_member, f"member {best}, best by validation": each[best]}
    for name in ways:
        table[name] = row(lambda judged, name=name: judged.combined[name])  # type: ignore[misc]
    return {
        "combinations": table,
        "members": each,
        "by_members": [
            row(lambda judged, m=m: judged.first[m])  # type: ignore[misc]
            for m in range(count)
        ],
        "disagreement": float(judged.disagreement.mean()),
        "divergence": float(judged.divergence.mean()),
        "gain": a_member["nll"] - table["mean"]["nll"],
        "reliability": {
            name: {k: v.tolist() for k, v in reliability._asdict().items()}
            for name, reliability in {
                MEMBERS: Reliability.of(_pooled(judged.members)),
                "mean": Reliability.of(judged.combined["mean"]),
            }.items()
        },
    }


def _best(validation: Sequence[Answered]) -> int:
    likely = [Answers.of(*each).log_likelihood for each in validation]
    return int(np.concatenate(likely, axis=-1).mean(axis=-1).argmax())


def _pooled(members: Answers) -> Answers:
    """The answers of all members as those of one."""
    return Answers(*(leaf.reshape(-1) for leaf in members))
