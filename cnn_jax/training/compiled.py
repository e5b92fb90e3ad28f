"""Compiles programs and caches them within the process.

The key is the lowered text: a notebook cell that is run again traces its step again and finds the program, even if its
functions are new objects. XLA's cache on disk serves other processes.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cnn_jax.data.pipeline import Item, Pipeline
from cnn_jax.tasks import Sums
from cnn_jax.training.parallel import Parallel, Tree
from cnn_jax.training.runtime import COMPILE_QUICKLY
from cnn_jax.training.state import TrainState
from cnn_jax.training.step import EvalStep, Step

KEPT = 16  # programs, the most recently used
_programs: OrderedDict[str, Any] = OrderedDict()


class TrainStep:
    """A training step on the devices of a run: `state, sums = train_step(state, items)`.

    `items` belong to one or more consecutive steps. Several steps run as a single call, and their sums come back
    stacked. Each new number of items is compiled on first use. The state's memory is reused.

    Args:
        step: the pure step of one network or of stacked members.
        pipeline: where the items come from; its resident arrays are put on the devices here.
        parallel: the devices.
        scan: whether one call may run several steps. Not on CPU, where loop bodies do not use XLA's thread pool.
        say: prints the "compiling …" lines.
        options: XLA's flags for these programs alone, without dashes.

    Attributes:
        arrays: the pipeline's resident arrays, on the devices.
        programs: compiled programs by number of items, each `(state, arrays, placed items) -> (state, sums)`.
    """

    def __init__(
        self,
        step: Step,
        pipeline: Pipeline,
        parallel: Parallel,
        *,
        scan: bool,
        say: Callable[[str], None] = print,
        options: Mapping[str, Any] | None = None,
    ):
        self._step, self._gather, self._parallel = step, pipeline.gather, parallel
        self._scan, self._say, self._options = scan, say, options
        self.arrays = parallel.place(pipeline.arrays)
        self.programs: dict[int, Any] = {}

    def __call__(self, state: TrainState, items: Sequence[Item]) -> tuple[TrainState, Sums]:
        """Dispatches the steps of `items`; does not wait for the device."""
        placed = self.prepare(state, items)
        return self.programs[len(items)](state, self.arrays, placed)

    def prepare(self, state: TrainState, items: Sequence[Item]) -> Any:
        """Puts items on the devices, and compiles if their number is new."""
        placed = self._parallel.place_item(stack(items) if self._scan else items[0], stacked=self._scan)
        if len(items) not in self.programs:
            self.programs[len(items)] = self._compile(state, placed)
        return placed

    def _compile(self, state: TrainState, placed: Any) -> Any:
        def one(state: TrainState, arrays: Tree, item: Tree) -> tuple[TrainState, Sums]:
            return self._step(state, self._gather(arrays, item))

        def many(state: TrainState, arrays: Tree, items: Tree) -> tuple[TrainState, Sums]:
            return jax.lax.scan(lambda state, item: one(state, arrays, item), state, items)

        self._say("compiling  …")
        start = time.perf_counter()
        program = _compile(
            self._parallel,
            many if self._scan else one,
            (state, self.arrays, placed),
            self._options,
            stacked=self._scan,
            rows_out=False,
            donate=True,
        )
        memory = program.memory_analysis()
        need = "" if memory is None else f", about {_bytes(memory)} of memory a device"
        self._say(f"compiled   in {time.perf_counter() - start:.1f} s{need}")
        return program


class EvalProgram:
    """An evaluation step on the devices of a run: `sums, collected = evaluate(variables, item)`."""

    def __init__(self, step: EvalStep, pipeline: Pipeline, parallel: Parallel):
        self._step, self._gather, self._parallel = step, pipeline.gather, parallel
        self._resident: Tree = pipeline.arrays
        self._arrays: Tree = None
        self._compiled: Any = None

    def __call__(self, variables: Tree, item: Item) -> tuple[Sums, dict[str, jax.Array]]:
        """Dispatches one batch; `collected` stays on the devices, see `Parallel.fetch_rows`."""
        placed = self.prepare(variables, item)
        return self._compiled(variables, self._arrays, placed)

    def prepare(self, variables: Tree, item: Item) -> Any:
        """Puts an item on the devices, and compiles at first."""
        if self._arrays is None:
            self._arrays = self._parallel.place(self._resident)
        placed = self._parallel.place_item(item)
        if self._compiled is None:
            args = (variables, self._arrays, placed)
            self._compiled = _compile(self._parallel, self._one, args, stacked=False, rows_out=True, donate=False)
        return placed

    def _one(self, variables: Tree, arrays: Tree, item: Tree) -> tuple[Sums, dict[str, jax.Array]]:
        return self._step(variables, self._gather(arrays, item))


def stack(items: Sequence[Item]) -> Tree:
    """Stacks the items of consecutive steps along a new first axis."""
    return jax.tree.map(lambda *xs: np.stack(xs), *items)


def mean_metrics(sums: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Exact means of (sum, count) metrics over many steps, added up in float64 on the host.

    >>> mean_metrics([{"loss": np.array([6.0, 4.0])}, {"loss": np.array([2.0, 1.0])}])
    {'loss': 1.6}
    """
    fetched = jax.device_get(list(sums))
    means = {}
    for name in fetched[0]:
        pairs = np.concatenate([one[name].reshape(-1, 2) for one in fetched])
        above, count = pairs.sum(axis=0, dtype=np.float64)
        means[name] = float(above / count)
    return means


def means_of_each(sums: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Exact means of the metrics of M networks over many batches; each sums are (M, 2), or (2,) for one network.

    >>> means_of_each([{"loss": np.array([[6.0, 4.0], [2.0, 4.0]])}, {"loss": np.array([[2.0, 1.0], [3.0, 1.0]])}])
    [{'loss': 1.6}, {'loss': 1.0}]
    """
    fetched = jax.device_get(list(sums))
    totals = {
        name: np.asarray(np.sum([one[name].reshape(-1, 2) for one in fetched], axis=0, dtype=np.float64))
        for name in fetched[0]
    }
    members = len(next(iter(totals.values())))
    return [{name: float(pairs[i, 0] / pairs[i, 1]) for name, pairs in totals.items()} for i in range(members)]


def compile_for_batch(parallel: Parallel, run: Callable[..., Any], state: Any, batch: Any) -> Any:
    """Compiles `run(state, batch) -> (one, two)`, both replicated, for the devices of a run and a batch placed there.

    The program is called as `program(state, {}, batch)`.
    """
    args = (state, {}, batch)
    return _compile(
        parallel, lambda state, _, batch: run(state, batch), args, stacked=False, rows_out=False, donate=False
    )


def call_once(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function as a compiled program that will not run often, so it is compiled quickly."""
    return call_traced(jax.jit(function).trace(*args), *args)


def call_traced(traced: jax.stages.Traced, *args: Any) -> Any:
    """Calls a traced function as `call_once` does."""
    return _program(traced.lower(), "", COMPILE_QUICKLY)(*args)


def _compile(
    parallel: Parallel,
    run: Callable[..., Any],
    args: Any,
    options: Mapping[str, Any] | None = None,
    **settings: bool,
) -> Any:
    lowered = parallel.lower(run, args, **settings)
    return _program(lowered, f"{parallel.kind} {parallel.devices} {settings}", options)


def _program(lowered: Any, where: str, options: Mapping[str, Any] | None = None) -> Any:
    """Compiles a lowered function, or returns the program already compiled from the same text for the same devices."""
    # The text leaves out arguments that are not used, but a program is only called with those that it was compiled for.
    # It leaves out how the outputs are nested, too: the states of adam and adamw hold the same arrays.
    nested = f"{lowered.args_info} {lowered.out_tree}"
    key = hashlib.sha256(f"{where} {options} {nested} {lowered.as_text()}".encode()).hexdigest()
    if key not in _programs:
        _programs[key] = lowered.compile(compiler_options=None if options is None else dict(options))
        while len(_programs) > KEPT:
            _programs.popitem(last=False)
    _programs.move_to_end(key)
    return _programs[key]


def _bytes(memory: Any) -> str:
    # Donated arguments are also outputs: count them once.
    size = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return f"{max(size - memory.alias_size_in_bytes, 0) / 2**20:,.0f} MiB"
