"""The files of a run folder that training and solving write alike: what describes a run, and its results."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cnn_jax.config import Config
from cnn_jax.data import Preprocess, Source
from cnn_jax.errors import UserError
from cnn_jax.models.ensembles import member
from cnn_jax.report import write_report
from cnn_jax.report.filters import Filters, first_layer
from cnn_jax.storage import durable
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.weights_file import to_bytes
from cnn_jax.tasks import Task


class Parts(Protocol):
    """What the files of a run say about it; `Experiment` has these parts."""

    @property
    def config(self) -> Config: ...

    @property
    def sources(self) -> Mapping[str, Source]: ...

    @property
    def task(self) -> Task: ...

    @property
    def preprocess(self) -> Preprocess: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...


def is_finished(run: Path, config: Config, set_by_run: Sequence[str] = ()) -> bool:
    """Whether the folder holds this run, finished.

    Args:
        run: the run folder.
        config: the run's config.
        set_by_run: model arguments that the run itself adds to its config.

    Raises:
        UserError: it holds another run that has trained, or one whose config cannot be read.
    """
    if not files.has_trained(run):
        return False
    if not (run / files.CONFIG).exists():
        raise UserError(
            f"{run} holds checkpoints or weights of a run, but no {files.CONFIG}: put it back, set `fresh` to start "
            "over, or set another `workdir`"
        )
    try:
        saved = files.read_config(run)
    except durable.ChecksumsDamaged:  # says what to do
        raise
    except UserError as error:
        start_over = "" if "`fresh`" in str(error) else "set `fresh` to start over, or "
        raise UserError(f"{error}, or {start_over}set another `workdir`") from error
    asked = tuple(text for text in saved.model.model_args if text.partition("=")[0] not in set_by_run)
    differences = config.difference(saved.override(model_args=asked))
    if differences:
        raise UserError(
            f"{run} holds a run with a different config ({'; '.join(differences)}): set another `workdir`, the same "
            "values, or `fresh` to start over"
        )
    needed = [files.SUMMARY, files.WEIGHTS, *([files.MEMBERS] if config.compares_rates else [])]
    return all([_is_whole(run / name) for name in needed])  # otherwise written again


def _is_whole(path: Path) -> bool:
    """Whether a file is there and undamaged; a damaged one is set aside."""
    try:
        durable.check(path)
    except durable.Damaged as error:
        print(f"warning: {error}; writing it again", file=sys.stderr)
        if path.exists():
            durable.set_aside(path)
    return path.exists()


def open_folder(run: Path, parts: Parts, data: dict[str, Any], facts: dict[str, Any]) -> None:
    """Writes the files that describe the run.

    With `fresh`, or without a checkpoint to resume from, sets the old run's files aside first, and no others.
    """
    fresh = parts.config.train.fresh or not any((run / name).exists() for name in files.ALL)
    if not fresh and not files.has_checkpoint(run) and (run / files.METRICS).exists():
        print(f"warning: no checkpoint in {run}; starting from step 0", file=sys.stderr)
        fresh = True
    if fresh:
        files.set_aside(run)
    # Repeating a saved config must not delete its run.
    files.write_text(run / files.CONFIG, parts.config.override(fresh=False).to_json())
    files.write_text(run / files.CLASSES, "".join(f"{name}\n" for name in parts.class_names))
    files.write_text(run / files.PREPROCESS, parts.preprocess.to_json())
    files.write_text(run / files.DATA, json.dumps(data, indent=2) + "\n")
    files.write_text(run / files.ENVIRONMENT, json.dumps(facts, indent=2) + "\n")


def write_results(
    run: Path,
    parts: Parts,
    summary: dict[str, Any],
    variables: Any,
    collected: dict[str, np.ndarray],
    split: str,
    rates: np.ndarray | None = None,
) -> None:
    """Writes weights, report and summary of a finished run.

    Args:
        run: the run folder, in which `open_folder` has written what describes the run.
        parts: of the run.
        summary: its summary, see `cnn_jax.storage.run_folder`.
        variables: those of the run's result, NumPy arrays.
        collected: what the task collected of each example of `split`, the last one evaluated.
        split: "test", or "validation" if there is no test split.
        rates: the learning rate of each step, for the report.
    """
    task = parts.task
    about = {name: summary[name] for name in ("experiment", "model", "dataset", "seed", "best_step", "commit")}
    about["classes"] = parts.class_names
    durable.write_checked(run / files.WEIGHTS, to_bytes(variables, {"cnn_jax": json.dumps(about, sort_keys=True)}))
    if parts.config.train.report:
        found = task.findings(collected, Images(parts.sources[split]), split)
        write_report(
            run,
            summary=summary,
            metrics=task.metrics,
            rates=rates,
            split=split,
            tiles=found.tiles,
            found=found.sections,
            pictures=found.pictures,
            filters=_filters(parts, variables.get("params", {})),
            classes=parts.class_names,
        )
    # Last: a folder with a summary counts as a finished run.
    files.write_text(run / files.SUMMARY, json.dumps(summary, indent=2) + "\n")


def results_in(run: Path, config: Config) -> Path:
    """Where a finished run's results are shown: its report, or else its folder."""
    return run / files.REPORT if config.train.report else run


def _filters(parts: Parts, params: Any) -> Filters | None:
    """First-layer filters of the run's first network."""
    first = member(params, 0) if parts.config.committee > 1 else params
    return first_layer(first, parts.preprocess.image_shape)


class Images(Sequence[np.ndarray]):
    """The images of a source as a sequence; each is read when it is accessed."""

    def __init__(self, source: Source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        return self._source[index]["image"]
