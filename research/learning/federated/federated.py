"""Federated learning: a step of the loop is a round, and its cohort a dimension of arrays.

A round has [cohort, ...] data, one row of it a client, split over the mesh axis `replica`. On each
device clients follow one another, each from the server's parameters (`Algorithm` says how); what
they send back is added up as it comes, so that a device never holds more than it computes at once,
and then over `replica`, once. A client's model may be split over all other axes of the mesh.

Clients that fail, or send what is not finite, weigh nothing and are counted. What they send may be
more than averaged (`Aggregation`), and is kept side by side where a stage has to see it so. Draws
are those of (seed, round, client): who else is in the cohort, and where a client is computed,
changes none.

What crosses the wire over `replica` is an all-reduce of what is averaged, and of scalars, or an
all-gather of what lies side by side; of the table of clients, where the algorithm has one, the rows
of the cohort.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.errors import UserError
from research.exchange.privacy import Event, Ledger
from research.exchange.privacy.noise import KEY, words_of
from research.exchange.replicas import DEVICE, Replicas
from research.exchange.stages import Several, size_of
from research.learning.federated.aggregation import Aggregation, Made
from research.learning.federated.algorithm import Algorithm, Replies, Server
from research.learning.federated.answers import HELD, Answers, Updates, told
from research.learning.federated.cohort import Cohort
from research.learning.federated.parts import like
from research.learning.federated.personal import personal
from research.learning.federated.state import FederatedState, Population, shardings
from research.learning.gradients import Batch, Tree
from research.learning.objective import Totals
from research.learning.seats import repeated
from research.learning.synchronous import StepMetrics, Synchronous
from research.models.convolution import as_products
from research.parallel.layout import abstract


class Federated:
    """The functions of federated learning, compiled for one mesh.

    `one` is how a client alone learns, with `optimizer` (of a rate that does not change) and
    `rate` by round; so many clients of a device are computed side by side (`width`; 1: one after
    another). `uniform` counts clients alike, else by their examples. Clients take `fine_tuning`
    local steps before each is evaluated by itself; `aggregation` makes one of what they send (None:
    the mean), and those that are `byzantine` [population] are counted. Each round of a private run
    releases `event`, with noise of a `secret` seed. The interface is that of `Synchronous`, and
    what is evaluated for all, sampled and exported is the server's (the mean of its models, if
    several).
    """

    rows_cross = True
    """Whether rows of the table go over `replica` to where a client is computed, and back."""

    def __init__(
        self,
        one: Synchronous,
        algorithm: Algorithm,
        server: optax.GradientTransformation,
        optimizer: optax.GradientTransformation,
        rate: optax.Schedule,
        peak: float,
        population: Population,
        width: int = 1,
        uniform: bool = False,
        fine_tuning: int = 0,
        aggregation: Aggregation | None = None,
        byzantine: np.ndarray | None = None,
        event: Event | None = None,
        secret: int = 0,
    ):
        """Raises UserError for a model that keeps what no stage sees."""
        self.one = one
        self.mesh = one.mesh
        self.specification = one.specification
        self.graph = one.graph
        self.algorithm = algorithm
        self._server = server
        self._devices = one.mesh.shape[DEVICE]
        self._fine_tuning = fine_tuning
        self.aggregation = aggregation or Aggregation(seed=one.seed)
        self.cohort = Cohort(
            one,
            algorithm,
            self.aggregation,
            optimizer,
            rate,
            peak,
            width,
            uniform,
            self._devices,
            split=one.mesh.size > self._devices,
        )
        self._byzantine = byzantine
        self.event, self._secret = event, secret
        least = 1 if self.aggregation.grouped else self.aggregation.least
        self.population = population._replace(minimum=max(population.minimum, least))
        if not self.aggregation.plain and jax.tree.leaves(one.abstract_state.buffers):
            raise UserError(
                "this model keeps statistics of its batches, which are averaged over clients as "
                "they are, past --federated.aggregation: use --model.normalization group"
            )

        divides = self.rows % self._devices == 0
        whole = NamedSharding(one.mesh, P())
        shapes = jax.eval_shape(self._initial)
        self.shardings: Any = shardings(
            shapes, one.shardings, server, algorithm.clusters is not None, divides
        )
        self.init: jax.stages.Wrapped = jax.jit(self._initial, out_shardings=self.shardings)
        self.abstract_state: FederatedState = abstract(shapes, self.shardings)
        self.on_devices = self.abstract_state
        """What of it a round has on the devices."""
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.shardings, whole))

        def of_all(totals: Callable[[Tree, Tree, Batch], Totals]) -> jax.stages.Wrapped:
            return jax.jit(
                lambda state, batch: totals(self._merged(state).parameters, state.buffers, batch),
                out_shardings=whole,
            )

        self.evaluate = of_all(one.totals)
        self.evaluate_each = of_all(one.totals_of_each)
        self.evaluate_personal = jax.jit(self._evaluate_personal, out_shardings=whole)
        """`evaluate_personal(state, batch)`: totals of each client of `batch`, [cohort] each, by
        its own model on what is `held_...` out of it (see `HeldOut`)."""

    @property
    def personalizes(self) -> bool:
        """Whether clients have models of their own."""
        return self.algorithm.personal is not None or self._fine_tuning > 0

    def model(self, state: FederatedState) -> Any:
        """The Flax module with the server's parameters."""
        return self.one.model(self._merged(state))

    def parameters(self, state: FederatedState) -> Tree:
        """The server's parameters as the model has them."""
        return self.one.parameters(self._merged(state))

    def in_rounds(self, parameters: Tree) -> Tree:
        """The model's parameters as the state has them, the same for every model of the server."""
        made, count = self.one.in_rounds(parameters), self.algorithm.clusters
        if count is None:
            return made
        return repeated(made, count)

    def with_parameters(self, state: FederatedState, parameters: Tree) -> FederatedState:
        """The initial `state` with other parameters, of clients too."""
        one = self._merged(state._replace(parameters=parameters)).parameters
        begin = jax.jit(self._table, out_shardings=self.shardings.clients)
        return state._replace(parameters=parameters, clients=begin(one))

    def events(self, step: int) -> dict[str, Any]:
        """The key of the noise, if a round has some."""
        return {KEY: words_of(self._secret)} if self.aggregation.private else {}

    def ledger(self, state: FederatedState) -> Ledger:
        """What a private run has released so far."""
        return state.stages["noise"]

    def complaint(self, metrics: dict[str, float]) -> str | None:
        """That too few clients answered."""
        population, least = self.population, self.aggregation.least
        if metrics["clients"] >= population.minimum:
            if metrics.get("groups", least) >= least:
                return None
            return (
                f"{metrics['groups']:.0f} groups of clients have enough of them left, and "
                f"--federated.aggregation.rule with its byzantine ones asks for {least}: use a "
                "larger --federated.cohort, or more --federated.aggregation.groups"
            )
        wanted, way = "--federated.minimum is", "smaller minimum"
        if self.aggregation.least == population.minimum > 1:
            wanted = "--federated.aggregation.rule with its byzantine ones asks for"
            way = "smaller --federated.aggregation.byzantine"
        return (
            f"{metrics['clients']:.0f} of {population.cohort} clients answered, and {wanted} "
            f"{population.minimum}: use a larger --federated.cohort, or a {way}"
        )

    def observe(self, step: int, state: FederatedState) -> dict[str, Any]:
        """After `step` rounds: `bytes_sent` by server and cohort together in the last of them and
        `bytes_sent_total` in all."""
        down, up = self.algorithm.sent(Server(state.parameters, state.shared, state.optimizer))
        each = self.population.cohort * (size_of(down) + self.aggregation.sent(up))
        return {"bytes_sent": each, "bytes_sent_total": step * each}

    # A round ------------------------------------------------------------------------------------

    def _initial(self) -> FederatedState:
        parameters, buffers = self.one.drawn()
        servers, clusters = parameters, self.algorithm.clusters
        if clusters is not None:
            drawn = [self.one.drawn(number)[0] for number in range(clusters)]
            servers = jax.tree.map(lambda *each: jnp.stack(each), *drawn)
        zero = jnp.zeros((), jnp.int32)
        shared, inside = self.algorithm.shared(parameters), self._server.init(servers)
        return FederatedState(
            zero,
            servers,
            buffers,
            inside,
            shared,
            self._table(parameters),
            zero,
            self.aggregation.init(self.algorithm.sent(Server(servers, shared, inside))[1]),
        )

    def _table(self, parameters: Tree) -> Tree:
        """What clients keep at the start."""
        own = self.algorithm.own(parameters)
        return repeated(own, self.rows)

    @property
    def rows(self) -> int:
        """Of the table of clients."""
        return self.population.clients

    def _kept(self, state: FederatedState, who: Batch) -> Tree:
        """The rows of the clients of a round, [cohort, ...]."""
        return jax.tree.map(lambda each: jnp.take(each, who["client"], axis=0), state.clients)

    def _table_after(self, state: FederatedState, who: Batch, rows: Tree, parameters: Tree) -> Tree:
        """The table after a round that leaves its clients with `rows`, the server `parameters`."""
        return jax.tree.map(
            lambda table, each: table.at[who["client"]].set(each), state.clients, rows
        )

    def _merged(self, state: FederatedState) -> Any:
        """With one model of the server's."""
        if self.algorithm.clusters is None:
            return state
        mean = jax.tree.map(lambda each: jnp.mean(each, axis=0), state.parameters)
        return state._replace(parameters=mean)

    def _step(self, state: FederatedState, batch: Batch) -> tuple[FederatedState, StepMetrics]:
        batch = dict(batch)
        secret = batch.pop(KEY, None)
        who, batch = told(batch)
        own = self._kept(state, who)
        answers, after, updates = jax.shard_map(
            self.cohort.answers,
            in_specs=(P(), P(DEVICE), P(DEVICE), P(DEVICE)),
            out_specs=(P(), P(DEVICE), P(DEVICE)),
            axis_names={DEVICE},
            check_vma=False,
        )(state, who, own, batch)

        made = self._together(state, answers, updates, who["client"], secret)
        enough = answers.alive >= self.population.minimum
        enough &= made.seen >= self.aggregation.least
        divided = jax.tree.map(lambda x: jnp.where(enough, x, 0), made.update)
        stages = jax.tree.map(
            lambda new, old: jnp.where(enough, new, old), made.stages, state.stages
        )
        share = answers.alive / self.population.clients
        before = Server(state.parameters, state.shared, state.optimizer)
        server = self.algorithm.serve(before, Replies(divided[0], divided[1], share))
        server = jax.tree.map(lambda new, old: jnp.where(enough, new, old), server, before)
        buffers = jax.tree.map(
            lambda total, old: jnp.where(enough, total / answers.weight, old).astype(old.dtype),
            answers.buffers,
            state.buffers,
        )
        parameters = jax.lax.optimization_barrier(server.parameters)
        clients = self._table_after(state, who, after, parameters)
        norms = optax.tree.norm(divided[0]), optax.tree.norm(parameters)
        sums = answers.sums
        if self.aggregation.private:  # a drawn cohort may be empty
            totals = sums.totals._replace(targets=jnp.maximum(sums.totals.targets, 1))
            sums = sums._replace(totals=totals)
        metrics = self.one.metrics(state.step, sums, *norms)
        metrics["learning_rate"] = self.cohort.rate_of(state.step)
        metrics["clients"] = answers.alive
        if self.aggregation.grouped:
            metrics["groups"] = made.seen
        if self._byzantine is not None:
            among = jnp.asarray(self._byzantine)[who["client"]]
            metrics["byzantine"] = jnp.sum(among, dtype=jnp.float32)
        asked = jnp.sum(who["drawn"]) if "drawn" in who else self.population.cohort
        dropped = state.dropped + asked - answers.alive.astype(jnp.int32)
        metrics["clients_dropped"] = dropped.astype(jnp.float32)
        return FederatedState(
            state.step + 1,
            parameters,
            buffers,
            server.optimizer,
            server.shared,
            clients,
            dropped,
            stages,
        ), metrics

    def _together(
        self,
        state: FederatedState,
        answers: Answers,
        updates: Updates,
        who: jax.Array,
        secret: jax.Array | None,
    ) -> Made:
        """Of the sum of the answers, or of the updates side by side.

        These are laid on every device by hand: the partitioner would split over `replica` what a
        rule makes of them, and gather it once more.
        """
        make, stages, step = self.aggregation.together, state.stages, state.step
        if not self.aggregation.stacks:
            return make(answers.replies, stages, step, answers.weight, who, secret)
        devices = Replicas(self._devices)

        def gathered(rows: jax.Array, one: NamedSharding | None = None) -> jax.Array:
            spec = P(None, *(one.spec if one else ()))
            return devices.gather(rows, spec).reshape(-1, *rows.shape[1:])

        def on_device(told: Any, updates: Updates, who: jax.Array) -> Made:
            stages, step, secret = told
            move, more = updates.sent
            placed = like(move, self.shardings.parameters), self.shardings.shared
            x = Several(jax.tree.map(gathered, (move, more), placed), gathered(updates.weight))
            return make(x, stages, step, jnp.sum(x.weight), gathered(who), secret)

        return jax.shard_map(
            on_device,
            in_specs=(P(), P(DEVICE), P(DEVICE)),
            out_specs=P(),
            axis_names={DEVICE},
            check_vma=False,
        )((stages, step, secret), updates, who)

    # Clients by themselves ------------------------------------------------------------------------

    def _evaluate_personal(self, state: FederatedState, batch: Batch) -> Totals:
        who, data = told(batch)
        held = {
            name.removeprefix(HELD): data.pop(name) for name in list(data) if name.startswith(HELD)
        }
        own = self._kept(state, who) if self.algorithm.personal is not None else ()

        def each(client: Any) -> Totals:
            who, own, data, held = client
            it = self.cohort.client(state, who, own, data)
            return personal(it, self.algorithm.personal, self._fine_tuning, held, who["pieces"])

        def on_device(state: FederatedState, *clients: Any) -> Totals:
            with as_products():
                return jax.lax.map(each, clients)

        return jax.shard_map(
            on_device,
            in_specs=(P(), *4 * (P(DEVICE),)),
            out_specs=P(DEVICE),
            axis_names={DEVICE},
            check_vma=False,
        )(state, who, own, data, held)
