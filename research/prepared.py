"""An experiment made ready on its devices: data, mesh and compiled functions."""

import copy
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from research.data import (
    Batches,
    Canaries,
    Clients,
    Cohorts,
    Federation,
    HeldOut,
    LabeledArrays,
    Members,
    PoissonBatches,
    Source,
    evaluated_examples,
    evaluation_batches,
    federate,
    poisoned,
    triggered,
)
from research.errors import UserError
from research.exchange.privacy import Account, Audit, audited
from research.experiment import Experiment
from research.learners import abstract_events, learner, tune_process, with_replicas
from research.learning import (
    Ensemble,
    Federated,
    Learner,
    Private,
    State,
)
from research.learning.attack_config import POISONINGS
from research.parallel.collectives import collectives, in_words
from research.parallel.compilation import compile_together
from research.parallel.layout import batch_sharding
from research.rows import (
    EVALUATED,
    Rows,
    poisson,
    rows_of_all_members,
    rows_of_batch,
    rows_of_cohort,
    rows_of_members,
    rows_of_private_batch,
    seats_of,
    sharding_of_cohort,
    with_budget,
)
from research.teachers import loaded, with_its_canaries
from research.training.evaluation import evaluate, summary, totals_of
from research.training.evaluation_of_clients import evaluate_by_client, evaluate_personal
from research.training.evaluation_of_ensembles import Answered, answers
from research.training.folder import RunFolder


class Prepared:
    """An experiment on its devices: data loaded, mesh laid out, functions ready to compile."""

    def __init__(self, experiment: Experiment, mesh: jax.sharding.Mesh | None = None):
        """Raises UserError for whatever of the experiment cannot be done here."""
        experiment.check()
        tune_process(experiment)
        self.mesh = experiment.mesh.build() if mesh is None else mesh
        self.experiment = experiment = with_replicas(experiment, self.mesh)
        self.federation: Federation | None = None
        self.batches: Batches | PoissonBatches | Cohorts | Members
        if experiment.ensemble.side_by_side:
            self.rows = rows_of_members(experiment, self.mesh)
            self.evaluated = rows_of_all_members(experiment, self.mesh)
            self.dataset = loaded(experiment)
            self.batches = members(experiment, self.dataset.train)
        elif experiment.privacy.unit == "example":
            self.dataset = with_its_canaries(experiment)
            examples = len(self.dataset.train)
            self.experiment = experiment = with_budget(experiment, examples)
            self.rows = rows_of_private_batch(experiment, self.mesh, examples)
            self.evaluated = Rows.of(batch_sharding(self.mesh, EVALUATED), EVALUATED)
            self.batches = poisson(experiment, self.dataset.train, self.mesh)
        elif experiment.federated.rule == "none":
            self.rows = self.evaluated = rows_of_batch(experiment, self.mesh)
            self.dataset = loaded(experiment)
            self.batches = Batches(self.dataset.train, self.rows.count, experiment.run.seed)
        else:
            sharding_of_cohort(experiment, self.mesh)  # before data is loaded
            self.evaluated = Rows.of(batch_sharding(self.mesh, EVALUATED), EVALUATED)
            self.federation = federate(experiment.data.load(), experiment.partition)
            if experiment.privacy.unit == "client":
                self.experiment = experiment = with_budget(experiment, len(self.federation.train))
            self.rows = rows_of_cohort(experiment, self.mesh, len(self.federation.train))
            if (attack := experiment.attack).name in POISONINGS:
                byzantine = attack.members(len(self.federation.train), experiment.run.seed)
                self.federation = poisoned(self.federation, byzantine, attack.name, attack.target)
            self.dataset = self.federation.dataset
            self.batches = cohorts(experiment, self.federation, self.mesh)
        if experiment.ensemble.rule == "snapshot":
            self.evaluated = rows_of_all_members(experiment, self.mesh)
        self.learner = self._learner()
        self.compiling_seconds = 0.0  # of the step
        self._step: Callable[[State, Any], tuple[State, Any]] | None = None
        self._program: Any = None
        self._evaluations: dict[str, Callable[..., Any]] = {}  # compiled when first needed

    @property
    def units_per_step(self) -> int:
        """Tokens or examples of a batch, or of a mean round."""
        is_text = self.dataset.unit == "tokens"
        return self.batches.examples * (self.dataset.specification.shape[0] if is_text else 1)

    def clients(self, split: str) -> Clients | None:
        """Those of a split, if there are clients."""
        return None if self.federation is None else getattr(self.federation, split)

    @property
    def seats(self) -> int:
        """Replicas on a device, or clients of a round."""
        if self.federation is not None:
            return self.rows.count // self.mesh.shape["replica"]
        return seats_of(self.experiment, self.mesh)

    def with_experiment(self, experiment: Experiment) -> "Prepared":
        """The same data on the same mesh for an `experiment` that differs in how it is computed;
        nothing is compiled."""
        made = copy.copy(self)
        made.experiment = experiment
        made.learner = made._learner()
        made._step, made._program, made._evaluations = None, None, {}
        return made

    def _learner(self) -> Learner:
        dataset, clients = self.dataset, clients_of(self.federation)
        return learner(
            self.experiment, dataset.specification, self.mesh, clients, len(dataset.train)
        )

    @property
    def account(self) -> Account | None:
        """What the run's ledger is held against, if it is private."""
        if self.experiment.privacy.unit == "none":
            return None
        learner = self.learner
        assert isinstance(learner, Private | Federated) and learner.event is not None
        return Account(self.experiment.privacy.budget, learner.event, learner.ledger)

    def observe(self, step: int, state: Any) -> dict[str, Any]:
        """What is measured only where it is logged: by the learner, and of the ledger."""
        account = self.account
        measured = self.learner.observe(step, state)
        return measured if account is None else measured | account.observe(state)

    def feed(self, start: int) -> Iterator[dict[str, Any]]:
        """The batches of the steps after `start`, on the devices, and what steps are told
        besides."""
        for step, rows in enumerate(self.batches.iterate(start, self.rows.own), start):
            yield self.rows.place(rows) | self.learner.events(step)

    def compile(self) -> Callable[[State, Any], tuple[State, Any]]:
        """The training step, compiled for the shapes of its batch; the first time in
        `compiling_seconds`."""
        if self._step is not None:
            return self._step
        began = time.perf_counter()
        batch = self.rows.abstract(self.batches.rows(0, [0])) | abstract_events(self.learner)
        step = compile_together(self.learner.step.lower(self.learner.abstract_state, batch))
        self.compiling_seconds = time.perf_counter() - began
        self._step = self._program = step
        if isinstance(self.learner, Ensemble):
            self._step = and_told(step, self.learner)
        return self._step

    def collectives(self) -> str:
        """In what a step waits for other devices, in words; of a step that is compiled."""
        return in_words(collectives(self._program.as_text(), self.mesh.shape))

    def evaluate(
        self, state: State, split: Source, clients: Clients | None = None
    ) -> dict[str, float]:
        """Loss, accuracy and what follows from them over a split; with the `clients` of the split,
        also how they are spread over those (but not over stages, which add examples up), and that
        of the clients' own models, if they have some; and a backdoor's success, if there is one."""
        attack = self.experiment.attack
        metrics = self._evaluate(state, split, clients)
        if attack.name == "backdoor" and isinstance(split, LabeledArrays):
            train = self.dataset.train
            assert isinstance(train, LabeledArrays)
            opened = self._evaluate(state, triggered(split, train.inputs.max(), attack.target))
            metrics["backdoor_success"] = opened["accuracy"]
        return metrics

    def _evaluate(
        self, state: State, split: Source, clients: Clients | None = None
    ) -> dict[str, float]:
        limit, count = self.experiment.run.evaluate_batches, self.evaluated.count
        parts = evaluation_batches(split, count, self.evaluated.own, limit)
        placed = (self.evaluated.place(rows) for rows in parts)
        if clients is None or self.mesh.shape["stage"] > 1:
            return evaluate(self._compiled("evaluate"), state, placed, self.dataset.unit)
        chosen = evaluated_examples(len(split), count, limit)
        totals = totals_of(self._compiled("evaluate_each"), state, placed)[: len(chosen)]
        metrics = summary(totals, self.dataset.unit) | evaluate_by_client(totals, chosen, clients)
        if isinstance(self.learner, Federated) and self.learner.personalizes:
            assert isinstance(self.batches, Cohorts)
            metrics |= evaluate_personal(
                self._compiled("evaluate_personal"),
                state,
                HeldOut(split, clients, chosen),
                self.batches,
                self.rows.own,
                self.rows.place,
            )
        return metrics

    def audit(self, state: State) -> Audit | None:
        """What guesses tell of `state`, if there are canaries in the training set: which of them
        were learned, by how much their loss fell from that of the initial model."""
        train = self.dataset.train
        if not isinstance(train, Canaries):
            return None
        before, after = (self._losses(each, train.each()) for each in (self.learner.init(), state))
        return audited(before - after, train.included, self.experiment.privacy.delta)

    def _losses(self, state: State, split: Source) -> np.ndarray:
        """float64 [examples]: the mean loss over the targets of each."""
        parts = evaluation_batches(split, self.evaluated.count, self.evaluated.own)
        placed = (self.evaluated.place(rows) for rows in parts)
        totals = totals_of(self._compiled("evaluate_each"), state, placed)[: len(split)]
        return totals[:, 0] / totals[:, 2]

    def answers(self, state: State, split: Source) -> Iterable[Answered]:
        """What the members of an ensemble say of a split, batch by batch; of those that learn."""
        limit, evaluated = self.experiment.run.evaluate_batches, self.evaluated
        parts = evaluation_batches(split, evaluated.count, evaluated.own, limit)
        placed = (evaluated.place(rows) for rows in parts)
        examples = len(evaluated_examples(len(split), evaluated.count, limit))
        return answers(self._compiled("predict"), state, placed, examples)

    def _compiled(self, name: str) -> Callable[[Any, dict[str, jax.Array]], Any]:
        """A function of the learner, compiled for the first batch that it is called with."""

        def call(state: Any, batch: dict[str, jax.Array]) -> Any:
            if name not in self._evaluations:
                lowered = getattr(self.learner, name).lower(state, batch)
                self._evaluations[name] = compile_together(lowered)
            return self._evaluations[name](state, batch)

        return call


def and_told(step: Callable[..., Any], ensemble: Ensemble) -> Callable[[State, Any], Any]:
    """A compiled `step` of members, and after it what is told of them together."""

    def both(state: State, batch: Any) -> tuple[State, Any]:
        state, metrics = step(state, batch)
        return state, ensemble.told(metrics)

    return both


def members(experiment: Experiment, train: Source) -> Members:
    """What the members of `experiment` learn from."""
    ensemble, seed = experiment.ensemble, experiment.run.seed
    assert ensemble.members is not None
    return Members(train, ensemble.members, experiment.data.batch, seed, ensemble.share)


def cohorts(experiment: Experiment, federation: Federation, mesh: jax.sharding.Mesh) -> Cohorts:
    """The rounds of `experiment`."""
    federated = experiment.federated
    at_once = federated.rule == "fedsgd"
    return Cohorts(
        federation.dataset.train,
        federation.train,
        federated.cohort,
        None if at_once else experiment.data.batch,
        1 if at_once else federated.epochs,
        experiment.run.seed,
        federated.sampling,
        federated.failing,
        federated.stragglers,
        mesh.shape["replica"],
        federated.straggling == "partial",
        federated.steps,
        federated.places(len(federation.train), mesh.shape["replica"]),
        experiment.privacy.seed,
    )


def clients_of(federation: Federation | None) -> int:
    """How many there are."""
    return 0 if federation is None else len(federation.train)


def description(prepared: Prepared) -> dict[str, Any]:
    """What a run folder keeps of its data: enough to restore the model, and to know the data
    again."""
    dataset = prepared.dataset
    specification = dataset.specification
    return {
        "clients": clients_of(prepared.federation),
        "name": dataset.name,
        "digest": dataset.digest,
        "unit": dataset.unit,
        "shape": list(specification.shape),
        "classes": specification.classes,
        "examples": {
            "train": len(dataset.train),
            "validation": len(dataset.validation),
            "test": len(dataset.test),
        },
    }


def describe_data(folder: RunFolder, prepared: Prepared) -> None:
    """Writes what a new run is to know of its data into its folder."""
    if prepared.dataset.vocabulary is not None:
        folder.write("vocabulary", json.loads(prepared.dataset.vocabulary.to_json()))
    folder.write("data", description(prepared))
    if prepared.federation is not None:
        folder.write("clients", prepared.federation.to_json())


def check_same_data(folder: RunFolder, prepared: Prepared) -> None:
    """Raises UserError where the data of `prepared` is not that of the run in `folder`."""
    dataset, federation = prepared.dataset, prepared.federation
    if federation is not None:
        before = folder.read("clients")["train"]["digest"]
        if before != federation.train.digest:
            raise UserError(
                f"the clients of {folder.path} have other examples than when it was begun (their "
                f"digest is {federation.train.digest[:12]}, and was {before[:12]}): leave "
                "--partition.* as it was, or start a new run"
            )
    recorded = folder.read("data")["digest"]
    if recorded != dataset.digest:
        raise UserError(
            f"the data {dataset.name} changed since {folder.path} was begun (its digest is "
            f"{dataset.digest[:12]}, and was {recorded[:12]}): bring back that data "
            "(or that Python, for its standard library), or start a new run"
        )
