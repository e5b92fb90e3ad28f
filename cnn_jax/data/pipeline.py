"""Turns a source into batches. The examples in batch k depend only on (seed, k), not on how they are read, the number
of workers or where a run was interrupted, so checkpoints need no data position.

Two pipelines produce the same batches: *resident* keeps all images as uint8 on the device and sends indices; *stream*
reads each batch, in threads or in processes. This module imports no JAX because reader processes import it.
"""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cnn_jax.data.decoded import MAX_DECODED_BYTES, check_labels, materialize
from cnn_jax.data.order import Balanced, Order, batch_indices, shuffled
from cnn_jax.data.readers import read_in_processes
from cnn_jax.data.sources import Source, example_spec, read_labels
from cnn_jax.errors import UserError, unknown

MODES = ("auto", "resident", "stream")
_ENDLESS = 2**48  # examples or steps: a sequence needs a length, and no run is longer
MAX_BATCH = 2**16  # limit for a batch larger than the data set: it repeats examples and must fit in memory
_READ_AHEAD = 16  # batches, one thread each; Grain's default of 500 would not fit in memory

Item = dict[str, np.ndarray]
Items = Generator[Item, None, None]


class Pipeline(Protocol):
    """Batches of one source.

    `arrays` is copied to the device once. The generators yield `item`s, NumPy arrays whose leading axis is the batch,
    and `gather(arrays, item)` builds the batch inside `jax.jit`. Closing a generator stops its readers.
    """

    @property
    def num_examples(self) -> int:
        """Number of examples of the source."""
        ...

    @property
    def batch_size(self) -> int:
        """Global batch size, over all devices."""
        ...

    @property
    def eval_steps(self) -> int:
        """Number of batches of one evaluation pass."""
        ...

    @property
    def arrays(self) -> Any:
        """Arrays to copy to the device once."""
        ...

    def gather(self, arrays: Any, item: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the source's arrays with leading axis B and, for an item of `eval_items`, "mask" (bool B)."""
        ...

    def sample_eval_item(self) -> Item:
        """Returns an item with the shapes and types of those of `eval_items`, to compile for."""
        ...

    def train_items(self, first_step: int = 0) -> Items:
        """Yields shuffled items forever from `first_step`; item k does not depend on where iteration started."""
        ...

    def eval_items(self, *, repeat: bool = False) -> Items:
        """Yields every example exactly once, in order; the last item is padded, with "mask" False on the padding.

        With `repeat`, passes of `eval_steps` items follow one another forever, because reader processes take seconds to
        start.
        """
        ...


def make_pipeline(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    mode: str = "auto",
    workers: int = 0,
    max_resident_bytes: int = MAX_DECODED_BYTES,
    balanced: bool = False,
) -> Pipeline:
    """Makes the pipeline of a source.

    Args:
      source: the examples.
      batch_size: global batch size, over all devices; may exceed the number of examples.
      seed: seed of the shuffling.
      mode: `resident`, `stream`, or `auto`: resident when the decoded images take at most `max_resident_bytes`.
      workers: reader processes when streaming; 0 reads in threads of this process.
      max_resident_bytes: limit of `auto`.
      balanced: whether all classes are trained on equally often, see `order.Balanced`; evaluation is not changed.

    Raises:
      UserError: an argument is out of range, an example cannot be read (resident), or there are no labels to balance.
    """
    if mode not in MODES:
        raise unknown("data mode", mode, MODES)
    if batch_size < 1 or workers < 0:
        raise UserError(f"`batch_size` is {batch_size} and `workers` is {workers}: set them to at least 1 and 0")
    if batch_size > max(len(source), MAX_BATCH):
        raise UserError(
            f"`batch_size` is {batch_size} for {len(source)} examples: set it to at most {max(len(source), MAX_BATCH)}"
        )
    if balanced and "label" not in example_spec(source):
        raise UserError(f"{source.name} has no labels, which balanced sampling needs: set `balance` to none")
    if is_resident(source, mode, max_resident_bytes):
        arrays = materialize(source)
        return ResidentPipeline(arrays, batch_size, seed, Balanced.of(arrays["label"]) if balanced else shuffled)
    return StreamPipeline(
        source, batch_size, seed, workers, order=Balanced.of(read_labels(source)) if balanced else shuffled
    )


def is_resident(source: Source, mode: str = "auto", max_resident_bytes: int = MAX_DECODED_BYTES) -> bool:
    """Whether `make_pipeline` puts the images of `source` on the device."""
    example = example_spec(source).values()
    decoded_bytes = len(source) * sum(int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize for array in example)
    return mode == "resident" or (mode == "auto" and decoded_bytes <= max_resident_bytes)


def _eval_rows(start: int, num_examples: int, batch_size: int) -> Item:
    """The rows of one evaluation batch; padding repeats the last example."""
    rows = np.arange(start, start + batch_size, dtype=np.int32)
    return {"index": np.minimum(rows, np.int32(num_examples - 1)), "mask": rows < num_examples}


@dataclass(frozen=True)
class ResidentPipeline:
    """All examples in memory, as `arrays` from `materialize`. Items hold "index" int32 B, and "mask" in evaluation."""

    arrays: Mapping[str, np.ndarray]
    batch_size: int
    seed: int
    order: Order = shuffled

    @property
    def num_examples(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def eval_steps(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def gather(self, arrays: Any, item: Mapping[str, Any]) -> dict[str, Any]:
        batch = {name: array[item["index"]] for name, array in arrays.items()}
        return {**batch, "mask": item["mask"]} if "mask" in item else batch

    def sample_eval_item(self) -> Item:
        return _eval_rows(0, self.num_examples, self.batch_size)

    def train_items(self, first_step: int = 0) -> Items:
        step = first_step
        while True:
            yield {"index": batch_indices(self.seed, step, self.num_examples, self.batch_size, self.order)}
            step += 1

    def eval_items(self, *, repeat: bool = False) -> Items:
        for step in range(_ENDLESS if repeat else self.eval_steps):
            yield _eval_rows(step % self.eval_steps * self.batch_size, self.num_examples, self.batch_size)


@dataclass(frozen=True)
class StreamPipeline:
    """Images read on demand. Items are the batches themselves."""

    source: Source
    batch_size: int
    seed: int
    workers: int

    arrays: tuple[()] = ()
    order: Order = shuffled

    @property
    def num_examples(self) -> int:
        return len(self.source)

    @property
    def eval_steps(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def gather(self, arrays: Any, item: Mapping[str, Any]) -> dict[str, Any]:
        del arrays
        return dict(item)

    def sample_eval_item(self) -> Item:
        example = _EvalRows(self.source, len(self.source))[0]
        return {name: np.stack([value] * self.batch_size) for name, value in example.items()}

    def train_items(self, first_step: int = 0) -> Items:
        return self._read(_TrainRows(self.source, self.seed, self.order), first_step)

    def eval_items(self, *, repeat: bool = False) -> Items:
        padded = self.eval_steps * self.batch_size
        if self.workers:
            yield from self._read(_EvalRows(self.source, padded, passes=_ENDLESS // padded if repeat else 1))
            return
        # Threads start quickly; kept alive, they would hold their prefetched batches until the next pass.
        for _ in range(_ENDLESS if repeat else 1):
            yield from self._read(_EvalRows(self.source, padded))

    def _read(self, rows: Any, first_step: int = 0) -> Items:
        """Reads `rows` in batches from `first_step`, by slicing: a Grain iterator's state depends on the threads."""
        if self.workers:
            yield from read_in_processes(_Batches(rows, self.batch_size), first_step, self.workers)
            return
        import grain  # slow to import, and only streaming in threads needs it

        batches = grain.MapDataset.source(rows).batch(self.batch_size).slice(slice(first_step, None))
        options = grain.ReadOptions(num_threads=_READ_AHEAD, prefetch_buffer_size=_READ_AHEAD)
        with closing(iter(batches.to_iter_dataset(options))) as items:
            yield from items


@dataclass(frozen=True)
class _Batches:
    """Rows in whole batches, each stacked along a new first axis."""

    rows: Any
    batch_size: int

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size

    def __getitem__(self, step: int) -> Item:
        examples = [self.rows[step * self.batch_size + place] for place in range(self.batch_size)]
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


@dataclass(frozen=True)
class _TrainRows:
    """The endless stream of shuffled examples as a sequence: row k is example k of the `batch_indices` stream."""

    source: Source
    seed: int
    order: Order

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, row: int) -> Item:
        epoch, place = divmod(int(row), len(self.source))
        return _read_example(self.source, int(self.order(self.seed, epoch, len(self.source))[place]))


@dataclass(frozen=True)
class _EvalRows:
    """Every example once, then padding up to `padded` rows; repeated for `passes`."""

    source: Source
    padded: int
    passes: int = 1

    def __len__(self) -> int:
        return self.passes * self.padded

    def __getitem__(self, row: int) -> Item:
        place, last = int(row) % self.padded, len(self.source) - 1
        example = _read_example(self.source, min(place, last))
        return {**example, "mask": np.asarray(place <= last)}


def _read_example(source: Source, index: int) -> Item:
    example = {name: np.asarray(value) for name, value in dict(source[index]).items()}
    if "label" in example:
        example["label"] = check_labels(source, example["label"][None], index)[0]
    return example
