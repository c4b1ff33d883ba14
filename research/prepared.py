"""An experiment made ready on its devices: data, mesh and compiled functions."""

import contextlib
import copy
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.data import (
    Batches,
    Clients,
    Cohorts,
    Dataset,
    Federation,
    HeldOut,
    LabeledArrays,
    Members,
    PoissonBatches,
    Source,
    Taught,
    cache_folder,
    evaluated_examples,
    evaluation_batches,
    federate,
    poisoned,
    triggered,
)
from research.data.dataset import Example
from research.errors import UserError
from research.exchange.privacy import Account, pld_epsilon
from research.exchange.privacy.ledger import NEIGHBORS
from research.experiment import Experiment
from research.learning import (
    Ensemble,
    Federated,
    Learner,
    Private,
    Replicated,
    State,
    Synchronous,
)
from research.learning.attack_config import POISONINGS
from research.learning.ensemble.votes import noisy_votes, spent
from research.models import Specification
from research.parallel.host_memory import keep_freed_memory
from research.parallel.layout import abstract, batch_sharding
from research.parallel.mesh import MeshConfig
from research.parallel.processes import compile_together, is_first
from research.rows import (
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
from research.training.checkpoints import Checkpoints
from research.training.evaluation import evaluate, summary, totals_of
from research.training.evaluation_of_clients import evaluate_by_client, evaluate_personal
from research.training.evaluation_of_ensembles import Answered, answers
from research.training.folder import RunFolder

EVALUATED = 512
"""Examples that are evaluated together where `--data.batch` is a client's."""


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
            self.dataset = experiment.data.load()
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
        made._step, made._evaluations = None, {}
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
        self._step = step
        if isinstance(self.learner, Ensemble):
            self._step = and_told(step, self.learner)
        return self._step

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


def with_replicas(experiment: Experiment, mesh: jax.sharding.Mesh) -> Experiment:
    """`experiment` with the number of replicas, so that other meshes will have as many."""
    exchange, ensemble = experiment.exchange.on(mesh), experiment.ensemble.on(mesh)
    return replace(experiment, exchange=exchange, ensemble=ensemble)


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


class Restored:
    """The newest checkpoint of a run, on the run's mesh if it fits this machine, else on 1 device.

    Needs none of the run's data.
    """

    def __init__(self, folder: RunFolder, change: Callable[[Experiment], Experiment] = lambda e: e):
        before = Experiment.from_json(folder.read("config"))
        self.experiment = change(before)
        self.data = folder.read("data")
        self.specification = Specification(tuple(self.data["shape"]), self.data["classes"])
        try:
            self.mesh = self.experiment.mesh.build()
        except UserError:
            if self.experiment.mesh != before.mesh:  # asked for
                raise
            self.mesh = MeshConfig().build(jax.devices()[:1])
        tune_process(self.experiment)
        self.learner = learner(
            self.experiment,
            self.specification,
            self.mesh,
            self.data.get("clients", 0),
            self.data["examples"]["train"],
        )
        checkpoints = Checkpoints(folder.checkpoints)
        with contextlib.closing(checkpoints), jax.set_mesh(self.mesh):
            self.step, self.state = checkpoints.restore(self.learner.abstract_state, warn)


def loaded(experiment: Experiment) -> Dataset:
    """The data of `experiment`; where it has a teacher, with what that says of every training
    example, or of those for validation, if it is to vote: these are public.

    Raises UserError for text, which would have a probability a token of the vocabulary.
    """
    dataset, ensemble = experiment.data.load(), experiment.ensemble
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


def teacher_of(run: Path, dataset: Dataset) -> "Restored":
    """Whoever was trained in `run`. Raises UserError where `dataset` has other shapes."""
    teacher = Restored(RunFolder.existing(run))
    if teacher.specification != dataset.specification:
        raise UserError(
            f"{run} was trained on {teacher.data['name']} of {teacher.specification}, and here is "
            f"{dataset.name} of {dataset.specification}: --ensemble.teacher needs the same"
        )
    return teacher


def asked(
    teacher: "Restored", source: Source, question: Callable[[Any, dict[str, jax.Array]], jax.Array]
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


def abstract_events(learner: Learner) -> dict[str, jax.ShapeDtypeStruct]:
    """What a step is told beside its batch, whole on every device."""
    events = learner.events(0)
    whole = jax.sharding.NamedSharding(learner.mesh, jax.sharding.PartitionSpec())
    return abstract(events, dict.fromkeys(events, whole))


def learner(
    experiment: Experiment,
    specification: Specification,
    mesh: jax.sharding.Mesh,
    clients: int = 0,
    examples: int = 0,
) -> Learner:
    """The algorithm of `experiment` on `mesh`, for so many training `examples` of `specification`,
    of so many `clients` if they keep them."""
    steps, exchange = experiment.run.steps, experiment.exchange
    asynchronous, federated = experiment.asynchronous, experiment.federated
    ensemble = experiment.ensemble
    schedule = ensemble.on(mesh).schedule(experiment.optimizer, steps)
    alone = exchange.rule == asynchronous.rule == federated.rule == ensemble.rule == "none"
    one = Synchronous(
        experiment.model,
        specification,
        experiment.optimizer.build(steps, schedule),
        schedule,
        mesh,
        experiment.run.seed,
        experiment.optimizer.microbatches,
        experiment.pipeline,
        outside=() if alone else ("replica",),
    )
    if experiment.privacy.unit == "example":
        return experiment.privacy.build(one, examples, experiment.data.batch)
    if alone:
        return one
    if asynchronous.rule != "none":
        return asynchronous.build(one)
    if federated.rule != "none":
        return federated.build(
            one,
            experiment.optimizer,
            steps,
            clients,
            experiment.attack,
            experiment.privacy.release(clients, federated.cohort),
            experiment.privacy.seed or 0,
        )
    if ensemble.rule != "none":
        return ensemble.on(mesh).build(one, experiment.optimizer, steps, experiment.model)
    exchange = exchange.on(mesh)
    assert exchange.replicas is not None
    return Replicated(
        one,
        exchange.build(steps, experiment.attack),
        exchange.replicas,
        "scan" if exchange.plan == "auto" else exchange.plan,  # nothing was measured
        drop=exchange.drops,
    )


def tune_process(experiment: Experiment) -> None:
    """Keeps compiled programs for the next start, and freed memory for the next step."""
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    if not experiment.run.compilation_cache:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def warn(line: str) -> None:
    """One line on standard error, from process 0."""
    if is_first():
        print(f"warning: {line}", file=sys.stderr, flush=True)


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


def say(line: str) -> None:
    """One line on standard output, from process 0."""
    if is_first():
        print(line, flush=True)
