"""Runs a pure step on one device or many: by `jit` over a mesh, or by `pmap`.

Under `jit` the batch is one global array, split over the mesh axis "data": BatchNorm statistics, gradients and metrics
are those of the whole batch without any hand-written communication. The mesh has `AxisType.Auto` axes; under JAX's
default, Explicit, an ordinary step does not trace. `pmap` is JAX's older form, in maintenance mode, kept for those who
need it: the step gets `axis_name="data"` and averages over it.
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
        devices: the devices in use.
    """

    kind: str
    devices: tuple[Any, ...]

    @property
    def axis_name(self) -> str | None:
        """The mapped axis that a step must average over under `pmap`; None under `jit`."""
        return AXIS if self.kind == "pmap" else None

    @cached_property
    def _mesh(self) -> jax.sharding.Mesh:
        return jax.make_mesh((len(self.devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=self.devices)

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of an array that every device holds whole."""
        return NamedSharding(self._mesh, PartitionSpec())

    def rows(self, stacked: bool = False) -> NamedSharding:
        """Sharding of an array whose batch axis, 0 (or 1 of `stacked` items), is split over the devices."""
        return NamedSharding(self._mesh, PartitionSpec(*([None] * int(stacked)), AXIS))

    def place(self, tree: Tree) -> Tree:
        """Copies arrays (state, resident images) to every device."""
        return jax.device_put(tree, self.replicated)

    def place_item(self, item: Tree, *, stacked: bool = False) -> Tree:
        """Splits NumPy arrays over the devices for a compiled step, along axis 0, or 1 of `stacked` items."""
        axis = int(stacked)
        if self.kind == "pmap":
            parts = len(self.devices)
            return jax.tree.map(
                lambda x: np.moveaxis(x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :]), axis, 0), item
            )
        if jax.process_count() == 1:
            return item  # the compiled step splits it, faster than a separate call would
        # Every process has the whole item; each places the rows of its own devices.
        rows = self.rows(stacked)
        return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, rows, x.__getitem__), item)

    def lower(self, run: Callable[..., Any], args: Any, *, stacked: bool, rows_out: bool, donate: bool) -> Any:
        """Lowers `run(a, b, item) -> (one, two)` for these devices, with `a`, `b` and `one` replicated.

        Args:
            run: the function; `two` is replicated too, unless `rows_out`.
            args: arrays or their shapes; `item` is split along its batch axis.
            stacked: whether the first axis of `item` stacks several steps.
            rows_out: whether the first axis of the leaves of `two` is the batch, split over the devices.
            donate: whether to reuse the memory of `a`.
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
        """Fetches a per-example output as one host array (N, …), however it was split."""
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
        batch_size: images per step over all devices.
        accumulate: parts into which the batch is split; each must divide evenly over the devices.

    Raises:
        UserError: too few devices, or the batch does not divide evenly over them.
    """
    found = jax.devices()
    if devices is not None and devices > len(found):
        raise UserError(f"`devices` is {devices}, but JAX found {len(found)}: lower it, or leave it out to use all")
    chosen = tuple(found[:devices])
    unit = len(chosen) * accumulate
    if batch_size % unit:
        low = batch_size - batch_size % unit
        near = " or ".join(str(size) for size in (low, low + unit) if size)
        parts = f" and `accumulate` is {accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"`batch_size` is {batch_size}{parts}: on {len(chosen)} devices it must be a multiple of {unit}, such as "
            f"{near}; or set `devices`"
        )
    return Parallel(kind, chosen)
