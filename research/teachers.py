"""What a run that has ended teaches another: what it says of examples, or how its members vote.

Hinton, Vinyals and Dean 2015, *Distilling the Knowledge in a Neural Network*, arXiv:1503.02531; and
PATE (Papernot et al. 2018, arXiv:1802.08908), where members vote with noise.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.data import Dataset, Source, Taught, evaluation_batches, with_canaries
from research.data.dataset import Example
from research.errors import UserError
from research.exchange.privacy import pld_epsilon
from research.exchange.privacy.ledger import NEIGHBORS
from research.experiment import Experiment
from research.learning import Ensemble
from research.learning.ensemble.votes import noisy_votes, spent
from research.parallel.saying import say
from research.restored import Restored
from research.rows import EVALUATED, Rows
from research.training.folder import RunFolder


def with_its_canaries(experiment: Experiment) -> Dataset:
    """The data of `experiment`, with canaries in the training set if it asks for some."""
    dataset, canaries = experiment.data.load(), experiment.privacy.canaries
    return with_canaries(dataset, canaries, experiment.run.seed) if canaries else dataset


def loaded(experiment: Experiment) -> Dataset:
    """The data of `experiment`; where it has a teacher, with what that says of every training
    example, or of those for validation, if it is to vote: these are public.

    Raises UserError for text, which would have a probability a token of the vocabulary.
    """
    dataset, ensemble = with_its_canaries(experiment), experiment.ensemble
    if ensemble.teacher is None:
        return dataset
    if dataset.unit == "tokens":
        raise UserError(
            "--ensemble.teacher is not for text, of which every token would have a probability for "
            "each of the vocabulary: leave it out"
        )
    run = Path(ensemble.teacher)
    if not ensemble.vote_noise:
        return replace(dataset, train=Taught(dataset.train, partial(probabilities, run, dataset)))
    public = dataset.validation
    votes = partial(votes_of, run, dataset, ensemble.vote_noise, ensemble.vote_seed or 0)
    return replace(
        dataset, train=Taught(public, votes), validation=dataset.test, test_is_validation=True
    )


def probabilities(run: Path, dataset: Dataset) -> Example:
    """`soft` float32 [examples, classes]: what the model or ensemble of `run` says of the training
    examples of `dataset`. Raises UserError where its own had other shapes."""
    teacher = teacher_of(run, dataset)
    model = teacher.learner.model
    soft = asked(teacher, dataset.train, lambda s, batch: jax.nn.softmax(model(s)(batch["inputs"])))
    return {"soft": soft}


def votes_of(run: Path, dataset: Dataset, deviation: float, seed: int) -> Example:
    """`targets` int32 [examples]: what the members of `run` vote for, with noise, of the validation
    examples of `dataset`; and it says what that tells of an example of theirs.

    Raises UserError where these have other shapes, or members had examples in common.
    """
    teacher = teacher_of(run, dataset)
    ensemble, learner = teacher.experiment.ensemble, teacher.learner
    if not isinstance(learner, Ensemble) or ensemble.share != "disjoint":
        raise UserError(
            f"the members of {run} are not of --ensemble.rule deep and --ensemble.share disjoint: "
            "one example could change the votes of many, and noise for one vote hides nobody"
        )
    key, public = jax.random.key(seed), dataset.validation

    def ask(state: Any, batch: dict[str, jax.Array]) -> jax.Array:
        keys = jax.vmap(partial(jax.random.fold_in, key))(batch["numbers"])
        return noisy_votes(learner.predict(state, batch).log_probabilities, deviation, keys)

    made = asked(teacher, public, ask)
    delta = 0.1 / teacher.data["examples"]["train"]
    epsilon = pld_epsilon(spent(deviation, len(public)), delta)
    say(
        f"{len(public):,} labels by the votes of {learner.count} members with noise of deviation "
        f"{deviation:g}: ε = {epsilon:.3f} at δ = {delta:.2g} for one training example of theirs "
        f"({NEIGHBORS}, PLD accountant)"
    )
    return {"targets": made}


def teacher_of(run: Path, dataset: Dataset) -> Restored:
    """Whoever was trained in `run`. Raises UserError where `dataset` has other shapes."""
    teacher = Restored(RunFolder.existing(run))
    if teacher.specification != dataset.specification:
        raise UserError(
            f"{run} was trained on {teacher.data['name']} of {teacher.specification}, and here is "
            f"{dataset.name} of {dataset.specification}: --ensemble.teacher needs the same"
        )
    return teacher


def asked(
    teacher: Restored, source: Source, question: Callable[[Any, dict[str, jax.Array]], jax.Array]
) -> np.ndarray:
    """What `question(state, batch)` gives for all examples of `source`, [examples, ...]; a batch
    has the `numbers` of its examples, too."""
    made: list[np.ndarray] = []
    whole = jax.sharding.NamedSharding(teacher.mesh, jax.sharding.PartitionSpec())
    answer, rows = jax.jit(question, out_shardings=whole), Rows.of(whole, EVALUATED)
    with jax.set_mesh(teacher.mesh):
        for first, batch in enumerate(evaluation_batches(source, rows.count, rows.own)):
            numbers = (first * rows.count + rows.own).astype(np.int32)
            placed = rows.place(batch | {"numbers": numbers})
            made.append(jax.device_get(answer(teacher.state, placed)))
    return np.concatenate(made)[: len(source)]
