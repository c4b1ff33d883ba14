"""How replicas lie on the devices, and the collectives between them, as one replica sees them.

What replicas exchange is written once, for one replica. `replica` is then a mesh axis of which the
code here is one part (a `jax.shard_map` that is manual over it), and where several replicas share
a device, `seat` is a mapped axis besides (`jax.vmap`). Replica r sits on device r // seats in seat
r % seats. Neighbors on one device send nothing: seats are added up or stacked first.

On other axes of the mesh an array lies as the partitioner likes, which would put a split array
together before an all-to-all or an all-gather. Where a `spec` is given, the array lies so, and
every device sends its own part of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

DEVICE, SEAT = "replica", "seat"


@dataclass(frozen=True)
class Replicas:
    """So many replicas: `seats` on each of `devices` parts of the mesh axis `replica`."""

    devices: int
    seats: int = 1

    @property
    def count(self) -> int:
        """How many there are."""
        return self.devices * self.seats

    def sum(self, x: jax.Array, spec: P | None = None) -> jax.Array:
        """Over all replicas: the same shape, one all-reduce."""
        return self._over_devices(self._over_seats(x), spec)

    def gather(self, x: jax.Array, spec: P | None = None) -> jax.Array:
        """[replicas, ...]: every replica's `x`, in one all-gather."""
        stacked = x[None] if self.seats == 1 else jax.lax.all_gather(x, SEAT)  # [seats, ...]
        if self.devices == 1:
            return stacked
        after = None if spec is None else P(None, *spec)
        return _lying(_gather_rows, stacked, after, after)

    def shift(self, x: jax.Array, by: int, spec: P | None = None) -> jax.Array:
        """The `x` of the replica `by` places before, round the ring: a collective-permute (two,
        where seats of one device take from two others)."""
        by %= self.count
        if by == 0:
            return x
        if self.seats == 1:
            return self._from_device(x, by, spec)
        after = None if spec is None else P(None, *spec)
        devices, seats = divmod(by, self.seats)
        stacked = jax.lax.all_gather(x, SEAT)
        here = self._from_device(stacked[: self.seats - seats], devices, after)
        if seats:
            there = self._from_device(stacked[self.seats - seats :], devices + 1, after)
            here = jnp.concatenate([there, here])
        return here[jax.lax.axis_index(SEAT)]

    def pair(self, x: jax.Array, distance: int, spec: P | None = None) -> jax.Array:
        """The `x` of replica r XOR `distance`, a power of two, as their number is."""
        if distance >= self.seats:
            far = distance // self.seats
            pairs = [(d, d ^ far) for d in range(self.devices)]
            return _lying(lambda x: jax.lax.ppermute(x, DEVICE, pairs), x, spec, spec)
        return jax.lax.all_gather(x, SEAT)[jax.lax.axis_index(SEAT) ^ distance]

    def trade(self, x: jax.Array, spec: P | None = None) -> jax.Array:
        """`x` [replicas, ...], a part for each replica, as [replicas, ...], the part that each has
        for this one: an all-to-all."""
        parts = x.reshape(self.devices, self.seats, *x.shape[1:])
        if self.seats > 1:
            parts = jax.lax.all_to_all(parts, SEAT, 1, 1)
        if self.devices > 1:
            spec = None if spec is None else P(None, *spec)
            parts = _lying(lambda x: jax.lax.all_to_all(x, DEVICE, 0, 0), parts, spec, spec)
        return parts.reshape(x.shape)

    # Groups of `size` replicas that follow one another -----------------------------------------

    def sum_inside(self, x: jax.Array, size: int, spec: P | None = None) -> jax.Array:
        """Over this replica's group."""
        if size % self.seats == 0:
            wide = size // self.seats
            groups = [list(range(d, d + wide)) for d in range(0, self.devices, wide)]
            return self._over_devices(self._over_seats(x), spec, groups)
        stacked = jax.lax.all_gather(x, SEAT)
        sums = stacked.reshape(-1, size, *x.shape).sum(1)
        return sums[jax.lax.axis_index(SEAT) // size]

    def sum_of_groups(self, x: jax.Array, size: int, spec: P | None = None) -> jax.Array:
        """Over the groups, of an `x` that is the same all over each group."""
        if size % self.seats == 0:
            wide = size // self.seats
            groups = [list(range(d, self.devices, wide)) for d in range(wide)]
            return self._over_devices(self._over_seats(x) / self.seats, spec, groups)
        return self._over_devices(self._over_seats(x) / size, spec)

    # --------------------------------------------------------------------------------------------

    def _over_seats(self, x: jax.Array) -> jax.Array:
        return x if self.seats == 1 else jax.lax.psum(x, SEAT)

    def _over_devices(
        self, x: jax.Array, spec: P | None, groups: list[list[int]] | None = None
    ) -> jax.Array:
        if self.devices == 1 or (groups is not None and len(groups[0]) == 1):
            return x
        return _lying(lambda x: jax.lax.psum(x, DEVICE, axis_index_groups=groups), x, spec, spec)

    def _from_device(self, x: jax.Array, by: int, spec: P | None) -> jax.Array:
        if by % self.devices == 0:
            return x
        sends = [(d, (d + by) % self.devices) for d in range(self.devices)]
        return _lying(lambda x: jax.lax.ppermute(x, DEVICE, sends), x, spec, spec)


def _gather_rows(x: jax.Array) -> jax.Array:
    """[devices · seats, ...] of [seats, ...]. XLA for TPUs gathers a flat array as a sum of arrays
    that are zero but for one part, twice the bytes: barriers keep the rows from being flattened."""
    rows = jax.lax.optimization_barrier(x[:, None] if x.ndim == 1 else x)
    rows = jax.lax.optimization_barrier(jax.lax.all_gather(rows, DEVICE, tiled=True))
    return rows.reshape(-1, *x.shape[1:])


def _lying(
    function: Callable[[jax.Array], jax.Array], x: jax.Array, before: P | None, after: P | None
) -> jax.Array:
    """`function` of the parts of `x` on all other axes of the mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = {a for a in mesh.axis_names if mesh.shape[a] > 1 and a not in mesh.manual_axes}
    if before is None or after is None or not axes:
        return function(x)
    return jax.shard_map(
        function, in_specs=before, out_specs=after, axis_names=axes, check_vma=False
    )(x)
