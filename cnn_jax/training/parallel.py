"""The same pure step on one device or many: as `jit` over a mesh, or as `pmap`.

Under `jit` the batch is one global array cut over the mesh axis "data": BatchNorm statistics, gradients and metrics are
those of the whole batch without a line of communication written by hand. The mesh has `AxisType.Auto` axes; JAX's
default is Explicit, under which an ordinary step does not trace. `pmap` is JAX's older form, in maintenance mode, kept
for those who need it: the step gets `axis_name="data"` and averages over it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cnn_jax.errors import UserError

AXIS = "data"
Tree = Any


@dataclass(frozen=True)
class Parallel:
    """Where arrays live and how a step is compiled.

    Attributes:
        kind: "jit" or "pmap".
        devices: those that take part.
    """

    kind: str
    devices: tuple[Any, ...]

    @property
    def axis_name(self) -> str | None:
        """The name a step must average over: only `pmap` has one."""
        return AXIS if self.kind == "pmap" else None

    @cached_property
    def _mesh(self) -> jax.sharding.Mesh:
        return jax.make_mesh((len(self.devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=self.devices)

    @property
    def replicated(self) -> NamedSharding:
        """Every device holds the whole array."""
        return NamedSharding(self._mesh, PartitionSpec())

    def rows(self, stacked: bool = False) -> NamedSharding:
        """Every device holds its part of the batch, axis 0, or 1 of `stacked` items."""
        return NamedSharding(self._mesh, PartitionSpec(*([None] * int(stacked)), AXIS))

    def place(self, tree: Tree) -> Tree:
        """Puts arrays whole on every device (state, resident images)."""
        return jax.device_put(tree, self.replicated)

    def place_item(self, item: Tree, *, stacked: bool = False) -> Tree:
        """Makes NumPy arrays what a compiled step takes: the batch axis (1 of `stacked` items, steps first) cut up."""
        axis = int(stacked)
        if self.kind == "pmap":
            parts = len(self.devices)
            return jax.tree.map(
                lambda x: np.moveaxis(x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :]), axis, 0), item
            )
        if jax.process_count() == 1:
            return item  # the compiled step cuts it itself, faster than a call of ours
        # Every process knows the whole item; each puts the rows of its own devices.
        rows = self.rows(stacked)
        return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, rows, x.__getitem__), item)

    def lower(self, run: Callable[..., Any], args: Any, *, stacked: bool, rows_out: bool, donate: bool) -> Any:
        """Lowers `run(a, b, item) -> (one, two)` for these devices: its first two arguments are whole on every device.

        Args:
            run: `one` is whole on every device, `two` too unless `rows_out`.
            args: arrays or their shapes; the batch axis of `item` is cut over the devices.
            stacked: whether the items of several steps lie along the first axis of `item`.
            rows_out: whether the leaves of `two` have the batch axis first.
            donate: whether the memory of `a` is reused.
        """
        donated = (0,) if donate else ()
        if self.kind == "pmap":
            out_axes = (None, 0 if rows_out else None)
            mapped = jax.pmap(
                run, AXIS, in_axes=(None, None, 0), out_axes=out_axes, devices=self.devices, donate_argnums=donated
            )
            return mapped.lower(*args)
        whole = self.replicated
        jitted = jax.jit(
            run,
            in_shardings=(whole, whole, self.rows(stacked)),
            out_shardings=(whole, self.rows() if rows_out else whole),
            donate_argnums=donated,
        )
        return jitted.lower(*args)

    def fetch_rows(self, array: jax.Array) -> np.ndarray:
        """Fetches a per-example output of a program as one host array, whatever way it was cut."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            array = multihost_utils.process_allgather(array, tiled=True)
        host = np.asarray(array)
        return host.reshape(-1, *host.shape[2:]) if self.kind == "pmap" else host


def make_parallel(kind: str, devices: int | None, batch_size: int, accumulate: int = 1) -> Parallel:
    """Chooses devices: all, or the first `devices`.

    Args:
        kind: "jit" or "pmap".
        devices: how many.
        batch_size: images a step, all devices together; the devices must divide each of its parts.
        accumulate: parts into which it is cut.

    Raises:
        UserError: more devices asked for than there are, or a batch that they do not divide.
    """
    found = jax.devices()
    if devices is not None and devices > len(found):
        raise UserError(
            f"given --devices {devices}; expected at most {len(found)}, the number of devices "
            "found; lower it, or leave it out to use them all"
        )
    chosen = tuple(found[:devices])
    unit = len(chosen) * accumulate
    if batch_size % unit:
        low = batch_size - batch_size % unit
        near = " or ".join(str(size) for size in (low, low + unit) if size)
        parts = f" and --accumulate {accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"given --batch-size {batch_size}{parts} on {len(chosen)} devices; expected a multiple of {unit}, "
            f"such as {near}; or give --devices N"
        )
    return Parallel(kind, chosen)
