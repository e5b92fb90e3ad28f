"""`cnn_jax.compare`: optimizers, or values of a config field, compared by a study."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn

from cnn_jax.config import DEPENDENT, Config
from cnn_jax.data.own import OwnData
from cnn_jax.errors import TrainingStopped, UserError, nearest
from cnn_jax.library import with_objects
from cnn_jax.optim.spaces import Ranges
from cnn_jax.studies.candidates import field_candidates, optimizer_candidates
from cnn_jax.studies.engine import run_study
from cnn_jax.studies.plan import open_study
from cnn_jax.studies.question import FOLDER, Question
from cnn_jax.studies.record import read_record
from cnn_jax.studies.study import Study
from cnn_jax.studies.texts import parse_vary, read_spaces
from cnn_jax.tasks import Task
from cnn_jax.training.experiment import Given
from cnn_jax.training.loop import STOP_CODE


def compare(
    model: nn.Module | str,
    train: OwnData | str,
    *,
    optimizers: Sequence[Any] | None = None,
    vary: Mapping[str, Sequence[Any]] | str | None = None,
    spaces: Mapping[Any, Ranges] | Sequence[str] = {},
    trials: int | None = None,
    seeds: int = 5,
    budget: str = "3epochs",
    target: float | None = None,
    together: str = "auto",
    validation: OwnData | str | float | None = None,
    test: OwnData | str | None = None,
    task: Task | str | None = None,
    classes: Sequence[str] | None = None,
    workdir: str | Path | None = None,
    config: Config | None = None,
    **fields: Any,
) -> Study:
    """Compares optimizers, or the values of a config field, with equal tuning for each; see docs/compare.md.

    The search tries `trials` points of each candidate's space, all from the same initial weights, on the same batches
    and with the same schedule. The best of each by validation is run again on `seeds` fresh seeds, and these read the
    test set, once, at their end. Ctrl-C stops the study and returns what is known; the same call goes on.

    Args:
        model: see `fit`.
        train: see `fit`.
        optimizers: names (see docs/optimizers.md), or Optax factories such as `optax.adam`.
        vary: a config field and its values, such as {"batch_size": [64, 128]} or "batch_size=64,128".
        spaces: ranges to search, by optimizer and argument, such as {"adam": {"learning_rate": (1e-5, 0.1)}}; they
            replace the declared ones, or add to them. A pair is the lowest and the highest value, see `range_between`
            in `cnn_jax.optim.spaces`; a `Parameter` says how values are drawn, too.
        trials: points tried for each candidate; 1: only the optimizer's usual values; default: 16 for `optimizers`, 1
            for `vary`.
        seeds: final runs of each candidate.
        budget: length of a trial, such as "3epochs", "500steps" or "60seconds".
        target: the value of the validation metric whose time is measured; default: what the best point of the first
            candidate reached at its end.
        together: whether the search trials of a candidate are trained at once: "yes", "no" or "auto", which means on
            GPU and TPU.
        validation: see `fit`.
        test: see `fit`.
        task: see `fit`.
        classes: see `fit`.
        workdir: the study's folder; default: runs/compare.
        config: supplies fields that are not given, but not what it chose for its own value of what is compared, such as
            the rate of its optimizer.
        fields: any field of the config by name. What is set here holds for every candidate and is not searched.

    Raises:
        UserError: a mistake in the arguments, or the folder holds something else; nothing has been written then.
        TrainingStopped: Ctrl-C before the study had begun.
    """
    base = Config("compare") if config is None else config
    base = base.override(workdir=base.train.workdir if workdir is None else str(workdir))
    chosen, given = with_objects(
        base, model, train, validation=validation, test=test, task=task, classes=classes, **fields
    )
    question = ask(
        chosen,
        set(fields),
        optimizers,
        vary,
        trials,
        seeds,
        budget,
        target,
        together,
        given,
        "cnn_jax.compare(…)",
        spaces=spaces,
    )
    try:
        return run_study(question)
    except TrainingStopped as stop:
        if stop.code != STOP_CODE:
            raise
        if read_record(question.folder) is None:  # not begun
            raise
        print(stop)
        return open_study(question.folder)


def ask(
    base: Config,
    explicit: set[str],
    optimizers: Sequence[Any] | None,
    vary: Mapping[str, Sequence[Any]] | str | None,
    trials: int | None,
    seeds: int,
    budget: str,
    target: float | None,
    together: str = "auto",
    given: Given = Given(),
    command: str | None = None,
    *,
    spaces: Mapping[Any, Ranges] | Sequence[str] = {},
) -> Question:
    """Returns the question that a study answers; see `compare` for the arguments.

    Raises:
        UserError: neither or both of `optimizers` and `vary`, or a mistake in them.
    """
    own = read_spaces(spaces)
    if optimizers is not None and vary is not None:
        raise UserError("`optimizers` and `vary` cannot be combined: drop one")
    if optimizers is not None:
        if "optimizer" in explicit:
            raise UserError("`optimizer` and `optimizers` cannot be combined: drop one")
        names = [optimizers] if isinstance(optimizers, str) else list(optimizers)
        if not names:
            raise UserError("`optimizers` names none: name at least one, such as sgd adam")
        base = _impartial(base, "optimizer", explicit)
        candidates = optimizer_candidates(names, base, explicit, own)
    elif vary is not None:
        field, values = parse_vary(vary) if isinstance(vary, str) else _only(vary)
        if given.model is not None and field in ("model", "model_args", "precision"):
            raise UserError(f"`vary` names {field}, but the model is an object: pass the name of one")
        base = _impartial(base, field, explicit)
        candidates = field_candidates(field, values, base, explicit, own)
    else:
        raise UserError("there is nothing to compare: set `optimizers` or `vary`")
    count = (1 if optimizers is None else 16) if trials is None else trials
    used = {str(candidate.fields.get("optimizer", base.optim.optimizer)) for candidate in candidates}
    if others := [name for name in own if name not in used]:
        hint = " or ".join(nearest(others[0], used))
        advice = f"perhaps you meant {hint}" if hint else "drop it"
        raise UserError(f"`spaces` names {others[0]}, which is not compared: {advice}")
    if count == 1 and own:
        raise UserError("`spaces` are searched with 2 trials or more: set `trials`, or drop them")
    if count == 1:
        candidates = [replace(candidate, space={}) for candidate in candidates]
    return Question(
        base.override(workdir=base.train.workdir or FOLDER),
        frozenset(explicit),
        candidates,
        count,
        seeds,
        budget,
        target,
        given,
        command,
        together,
    )


def _impartial(base: Config, field: str, explicit: set[str]) -> Config:
    """The config without what it chose for its own value of a field: that would favour this one."""
    usual = Config().flat()
    return base.override(**{name: usual[name] for name in DEPENDENT.get(field, ()) if name not in explicit})


def _only(vary: Mapping[str, Sequence[Any]]) -> tuple[str, Sequence[Any]]:
    if len(vary) != 1:
        raise UserError(f"`vary` has {len(vary)} fields: vary one at a time")
    ((field, values),) = vary.items()
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise UserError(f"`vary` gives {values!r} for {field}: pass a list of values")
    return field, values
