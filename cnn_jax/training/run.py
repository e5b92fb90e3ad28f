"""Starts or resumes a run, trains it, and writes weights, summary and report."""

import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cnn_jax.config import Config, Member
from cnn_jax.data.folder import check_outside_of_classes
from cnn_jax.data.image_file import describe
from cnn_jax.data.sources import describe_contents
from cnn_jax.errors import TrainingStopped, UserError, counted
from cnn_jax.storage import durable
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.lock import locked
from cnn_jax.storage.weights_file import to_bytes
from cnn_jax.training import runtime
from cnn_jax.training.callbacks import Callback, EarlyStopping
from cnn_jax.training.checkpoint import Checkpoints, InMemory
from cnn_jax.training.compiled import TrainStep
from cnn_jax.training.experiment import Experiment, Given, check_names, make_experiment
from cnn_jax.training.gauging import GaugeReader
from cnn_jax.training.loggers import check_loggers, make_loggers
from cnn_jax.training.loop import STOP_CODE, StopRequest, best_of, run_loop
from cnn_jax.training.outcome import is_finished, open_folder, results_in, write_results
from cnn_jax.training.progress import Display, aligned
from cnn_jax.training.record import Recorder, rates_of
from cnn_jax.training.solved import for_solving, is_solved_by, set_by_solving, solve_in
from cnn_jax.training.state import TrainState, variables_for_evaluation
from cnn_jax.weights.trained import read_preprocess


def train(
    config: Config,
    given: Given = Given(),
    callbacks: Sequence[Callback] = (),
    command: str | None = None,
    tell: Callable[[str], None] = print,
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains or resumes the run in `config.train.workdir`; returns the summary written there.

    A classical classifier is solved for instead, see `cnn_jax.classical`.

    Args:
        config: the run's config.
        given: objects that replace names in the config.
        callbacks: called after each validation; True asks to stop.
        command: how the run was started, for the record; default: the command line.
        tell: prints a message that names config fields in backticks.
        quiet: print nothing but warnings.

    Raises:
        UserError: a mistake in the config, or the folder holds another run.
        TrainingStopped: Ctrl-C, or a loss that is not finite.
    """
    runtime.prepare(config.train)
    check_names(config, given)
    check_loggers(config.train.logger)
    run = Path(config.train.workdir or f"runs/{config.experiment}")
    if run.exists() and not run.is_dir():
        raise UserError(f"`workdir` {run} is a file: name a folder")
    files.check_ours(run)
    command = command or runtime.command_line()
    family, _, path = config.data.dataset.partition(":")
    if family == "folder":
        check_outside_of_classes(path, run)
    with locked(run) if jax.process_index() == 0 else nullcontext(), _muted() if quiet else nullcontext():
        if jax.process_index() == 0:
            files.bring_back(run)  # undo what a killed start had set aside
            files.remove_partial(run)
        solved = is_solved_by(config, given)
        if solved:
            config = for_solving(config, tell)
        if not config.train.fresh and is_finished(run, config, set_by_solving(config, given) if solved else ()):
            tell(f"finished already: {results_in(run, config)}; set `fresh` to start over, or another `workdir`")
            return files.read_json(run, files.SUMMARY)
        if solved:
            return solve_in(run, config, given, command, tell)
        return _train_in(run, config, given, callbacks, command)


@contextmanager
def _muted() -> Iterator[None]:
    """Context in which nothing reaches stdout."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def _train_in(run: Path, config: Config, given: Given, callbacks: Sequence[Callback], command: str) -> dict[str, Any]:
    """Trains or resumes the run in a folder that no other process writes to."""
    print("preparing  data and initial weights …", flush=True)
    resumes = not config.train.fresh and files.has_checkpoint(run) and (run / files.PREPROCESS).exists()
    experiment = make_experiment(config, given, resumed=read_preprocess(run) if resumes else None)
    if resumes and (known := files.read_classes(run)) != tuple(experiment.class_names):
        raise UserError(
            f"{config.data.dataset} now has the classes {', '.join(experiment.class_names)}, but {run} was trained on "
            f"{', '.join(known)}: set `fresh` to start over, or another `workdir`"
        )
    data = {
        split: describe_contents(source, experiment.data[split].arrays or None)
        for split, source in experiment.sources.items()
    }
    if resumes:
        _check_data(data, run)
    try:
        return _start(experiment, data, run, callbacks, command)
    except BaseException as error:
        if jax.process_index() == 0:
            files.bring_back(run)  # if it failed before it had compiled
        if isinstance(error, TrainingStopped):
            error.experiment = experiment
        raise


def _start(
    experiment: Experiment, data: dict[str, Any], run: Path, callbacks: Sequence[Callback], command: str
) -> dict[str, Any]:
    facts = runtime.environment(command)
    first = jax.process_index() == 0
    if first:
        open_folder(run, experiment, data, facts)
    if jax.process_count() > 1:  # no process may look for checkpoints before `fresh` has removed them
        multihost_utils.sync_global_devices("run folder")
    _banner(experiment, facts, run)
    make_checkpoints = Checkpoints if experiment.config.train.checkpoints else InMemory
    with make_checkpoints(run / files.CHECKPOINTS, experiment.task.selection) as checkpoints:
        with StopRequest() as stop:
            last_step, seconds = _train(experiment, run, checkpoints, stop, callbacks)
        best, state = _selected(experiment, checkpoints, last_step)
        try:
            return _finish(experiment, run, checkpoints, facts, last_step, seconds, best, state)
        except KeyboardInterrupt as error:  # only in the library: a command has quit
            raise TrainingStopped(
                "stopped before the results were written; the training is complete: the same command writes them",
                STOP_CODE,
                state,
            ) from error


def _selected(experiment: Experiment, checkpoints: Checkpoints | InMemory, last_step: int) -> tuple[int, TrainState]:
    """Restores the checkpoint that is best by validation, or the last one; returns its step and state."""
    config, replicated = experiment.config, experiment.parallel.replicated
    step = checkpoints.best_step() if config.train.select == "best" else last_step
    restored = checkpoints.restore(experiment.state, replicated, step=step, finite=_stays_finite(config))
    assert restored is not None, "the loop saves a checkpoint after its last step"
    return restored


def _check_data(data: dict[str, Any], run: Path) -> None:
    """Checks that the examples are those that the run began with: their order depends on them.

    Raises:
        UserError: a split has changed.
    """
    if not (run / files.DATA).exists():  # a run of an earlier version
        return
    before = files.read_json(run, files.DATA)
    for split, now in data.items():
        # A description may lack what was not at hand, such as the arrays of a streamed source.
        if any(now[part] != known for part, known in before.get(split, {}).items() if part in now):
            raise UserError(
                f"the {split} data of {run} has changed since it was started "
                f"({counted(before[split]['examples'], 'example')} then, {now['examples']:,} now): restore it, set "
                "`fresh` to start over, or another `workdir`"
            )


def _banner(experiment: Experiment, facts: dict[str, Any], run: Path) -> None:
    config, plan, levels = experiment.config, experiment.plan, experiment.preprocess.levels
    shape = "x".join(map(str, experiment.preprocess.image_shape))
    where = "resident on the device" if jax.tree.leaves(experiment.data["train"].arrays) else "streamed"
    members, classes = config.train.members, len(experiment.class_names)
    step_flops = 3 * experiment.flops_per_image * config.data.batch_size * members
    lines = {
        "cnn_jax": f"{facts['cnn_jax']}, jax {facts['jax']}, python {facts['python']}",
        "devices": f"{facts['platform']}: {facts['device']}; "
        f"using {len(experiment.parallel.devices)} by {config.train.parallel}; convolutions {facts['convolutions']}",
        "data": f"{config.data.dataset}, {shape}, {counted(classes, 'class') if classes else 'no labels'}; "
        f"{', '.join(f'{name} {len(source):,}' for name, source in experiment.sources.items())}; "
        f"{where}",
        **({} if levels is None else {"levels": f"{describe(levels)}; the files have more than 8 bits"}),
        "model": f"{f'{members} x ' if members > 1 else ''}{config.model.model}, {experiment.parameters:,} parameters, "
        f"{experiment.flops_per_image / 1e6:,.2f} MFLOP an image forward, {config.model.precision}",
        "optimizer": experiment.optimizer.description,
        "training": f"{counted(plan.total_steps, 'step')} of {counted(config.data.batch_size, 'image')} "
        f"({plan.total_steps / plan.steps_per_epoch:.1f} epochs), about {step_flops / 1e9:,.2f} GFLOP a step",
        "folder": str(run),
    }
    if experiment.origin:
        lines["weights"] = experiment.origin
    for name, text in lines.items():
        print(f"{name:10} {text}", flush=True)


def _train(
    experiment: Experiment,
    run: Path,
    checkpoints: Checkpoints | InMemory,
    stop: StopRequest,
    callbacks: Sequence[Callback],
) -> tuple[int, float]:
    """Runs the loop; returns the last step and the duration of the run in seconds."""
    config, parallel, plan = experiment.config, experiment.parallel, experiment.plan
    restored = checkpoints.restore(experiment.state, parallel.replicated, finite=_stays_finite(config))
    first_step, state = restored or (0, parallel.place(experiment.state))
    if restored:
        print(f"resuming   from step {first_step}", flush=True)
        _warn_of_lost(run, first_step)
    display = Display(
        metrics=experiment.task.metrics,
        total_steps=plan.total_steps,
        first_step=first_step,
        steps_per_epoch=plan.steps_per_epoch,
        batch_size=config.data.batch_size,
        flops=3 * experiment.flops_per_image * config.data.batch_size * config.train.members,
        devices=len(parallel.devices),
        compared=config.compared,
    )
    pipeline, evaluator = experiment.data["train"], experiment.validator()
    train_step = TrainStep(experiment.train_step, pipeline, parallel, scan=plan.scan_steps > 1, say=display.say)
    folder = run if jax.process_index() == 0 else None
    # Close here: the reader processes end with what reads from them.
    with closing(pipeline.train_items(first_step)) as items, closing(evaluator):
        ahead = list(itertools.islice(items, max(plan.chunk_sizes(first_step), default=0)))
        for count in plan.chunk_sizes(first_step):  # before any clock runs
            train_step.prepare(state, ahead[:count])
        checkpoints.prepare()
        if stop.requested and first_step == 0:
            raise TrainingStopped(
                "stopped before the first step: nothing was trained, and any earlier run is kept", STOP_CODE
            )
        if folder:
            files.forget(run)  # the new run has compiled: delete the one that it replaces
        feed = itertools.chain(ahead, items)
        del ahead
        loggers = make_loggers(config.train.logger, folder, first_step, config.flat()) if folder else []
        gauges = GaugeReader(experiment, display.say) if config.train.gauges else None
        schedule, batch_size = experiment.optimizer.schedule, config.data.batch_size
        with (
            display,
            closing(
                Recorder(folder, plan, schedule, batch_size, display, first_step, loggers, config.compared)
            ) as recorder,
        ):
            callbacks = [*_early_stopping(experiment), *callbacks]
            for step, rows in itertools.groupby(recorder.history, key=lambda row: row["step"]):
                each = [{name: row[name] for name in experiment.task.metrics if name in row} for row in rows]
                metrics = best_of(each, checkpoints.selection)
                if any([callback.on_evaluation(step, metrics, None) for callback in callbacks]):
                    return first_step, recorder.seconds  # it had stopped early, but was killed before it finished

            def gauge(state: TrainState) -> None:
                if gauges is not None:
                    with display.clock.paused():
                        gauges.prepare(state)
                    recorder.gauges(*gauges(state))

            def validate(state: TrainState) -> list[dict[str, float]]:
                variables = variables_for_evaluation(state)
                with display.clock.paused():
                    evaluator.prepare(variables)
                each = evaluator.each(variables)
                gauge(state)  # before the checkpoint is saved, so that a resumed run lacks no row
                return each

            if first_step == 0:
                gauge(state)

            last_step, _ = run_loop(
                state,
                first_step,
                plan,
                train_step=train_step,
                items=feed,
                validate=validate,
                checkpoints=checkpoints,
                recorder=recorder,
                stop=stop,
                callbacks=callbacks,
            )
            if last_step < plan.total_steps:
                display.say(f"stopped    early, after step {last_step:,} of {plan.total_steps:,}")
        checkpoints.wait()
        return last_step, recorder.seconds


def _stays_finite(config: Config) -> bool:
    """Whether a state that is not finite is never saved. In a sweep of rates some networks may diverge."""
    return not config.compares_rates


def _early_stopping(experiment: Experiment) -> list[Callback]:
    patience, selection = experiment.config.train.patience, experiment.task.selection
    return [] if patience is None else [EarlyStopping(selection.metric, selection.higher_is_better, patience)]


def _warn_of_lost(run: Path, step: int) -> None:
    """Warns if the run had got further than the restored checkpoint."""
    last = max((row["step"] for row in files.read_metrics(run) if row["kind"] == "validation"), default=0)
    if last > step:
        print(f"warning: the checkpoint of step {last} is missing; falling back to step {step}", file=sys.stderr)


def _finish(
    experiment: Experiment,
    run: Path,
    checkpoints: Checkpoints | InMemory,
    facts: dict[str, Any],
    last_step: int,
    seconds: float,
    step: int,
    state: TrainState,
) -> dict[str, Any]:
    """Evaluates the test set once with the selected state, if it may be read; writes weights, summary and report."""
    config, plan, task = experiment.config, experiment.plan, experiment.task
    every = variables_for_evaluation(state)
    validated = checkpoints.metrics(step) or best_of(experiment.validator().each(every), task.selection)
    best = int(validated.get("member", 0))
    variables = experiment.kept(every, best)
    split = "test" if "test" in experiment.sources else "validation"
    means, collected, evaluation = experiment.evaluator(split).timed_predictions(variables)
    figures = {"validation": validated, split: means}
    summary = {
        "experiment": config.experiment,
        "task": task.name,
        "model": config.model.model,
        "dataset": config.data.dataset,
        "seed": config.train.seed,
        "epochs": last_step / plan.steps_per_epoch,
        "steps": last_step,
        "best_step": step,
        **{f"{of}_{name}": figures[of][name] for of in sorted(figures, reverse=True) for name in task.metrics},
        **{f"{of}_count": len(experiment.sources[of]) for of in figures},
        "seconds": seconds,
        "evaluation_seconds": evaluation,
        "parameters": experiment.parameters,
        "flops_per_image": experiment.flops_per_image,
        "device": facts["device"],
        "jax": facts["jax"],
        "command": facts["command"],
        "commit": facts["commit"],
        "finished": True,
    }
    if config.compares_rates:
        summary |= {"best_member": best, **_own(config.compared[best])}
        summary["rates"] = _rates_compared(experiment, run, last_step, best)
    if jax.process_index() == 0:
        if config.compares_rates:
            durable.write_checked(run / files.MEMBERS, to_bytes(jax.device_get(every), {}))
        if split == "test":
            row = {"kind": "test", "step": step, "epoch": step / plan.steps_per_epoch}
            files.append_metrics(run, row | means | {"seconds": seconds})
        rates = _rates(experiment, last_step)
        write_results(run, experiment, summary, jax.device_get(variables), collected, split, rates)
    _tell_rates(experiment, summary)
    name, metric = task.selection.metric, task.metrics[task.selection.metric]
    shown = [f"{of} {name} {metric.text(summary[f'{of}_{name}'])}" for of in sorted(figures, reverse=True)]
    which = f" and learning rate {config.compared[best]}, the best by validation" if config.compares_rates else ""
    print(
        f"finished   {', '.join(shown)} ({counted(summary[f'{split}_count'], 'image')}) with the weights of step "
        f"{step}{which}; {results_in(run, config)}",
        flush=True,
    )
    return summary


def _rates(experiment: Experiment, steps: int) -> np.ndarray | None:
    """The learning rates of the steps, of each network if rates are compared; None if they are unknown."""
    schedule = experiment.optimizer.schedule
    if schedule is None:
        return None
    rates = rates_of(schedule, experiment.plan.total_steps)[:steps]
    peaks = np.array([of.learning_rate for of in experiment.config.compared])
    return np.outer(peaks / peaks[0], rates) if peaks.size else rates


def _rates_compared(experiment: Experiment, run: Path, last_step: int, best: int) -> list[dict[str, Any]]:
    """Describes each of the networks whose learning rates are compared, by its selected validation."""
    config, key = experiment.config, experiment.task.selection.key
    rows = [row for row in files.read_metrics(run) if row["kind"] == "validation"]
    found = []
    for number, of in enumerate(config.compared):
        own = [row for row in rows if row.get("member") == number]
        if config.train.select == "last":
            own = [row for row in own if row["step"] == last_step]
        if not own:  # lost with metrics.jsonl
            continue
        row = max(own, key=lambda row: (key(row), row["step"]))
        values = {f"validation_{name}": _or_none(row[name]) for name in experiment.task.metrics}
        found.append({**_own(of), "step": row["step"], **values, "kept": number == best})
    return found


def _own(of: Member) -> dict[str, Any]:
    """What a network that is compared has of its own, for the summary."""
    return {"learning_rate": of.learning_rate, **({"optimizer_args": " ".join(of.args)} if of.args else {})}


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _tell_rates(experiment: Experiment, summary: dict[str, Any]) -> None:
    """Prints a line for each of the networks whose learning rates are compared."""
    rows = summary.get("rates", ())
    names = aligned([Member(row["learning_rate"], tuple(row.get("optimizer_args", "").split())) for row in rows])
    for own, row in zip(names, rows, strict=True):
        values = [
            f"{name} {'–' if (value := row[f'validation_{name}']) is None else metric.text(value)}"
            for name, metric in experiment.task.metrics.items()
        ]
        kept = "  kept" if row["kept"] else ""
        print(f"rate       {own}  validation {'  '.join(values)}  step {row['step']}{kept}")
