"""A trained run in a folder: opened or gone on with, trained, finished with weights, summary and report."""

import itertools
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cnn_jax.config import Config
from cnn_jax.data import Source
from cnn_jax.errors import TrainingStopped, UserError
from cnn_jax.report import write_report
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.weights_file import save_weights
from cnn_jax.training import runtime
from cnn_jax.training.checkpoint import Checkpoints, has_checkpoint
from cnn_jax.training.experiment import Experiment, make_experiment, of_members
from cnn_jax.training.loop import STOP_CODE, StopRequest, run_loop
from cnn_jax.training.parallel import stack
from cnn_jax.training.progress import Display
from cnn_jax.training.record import Recorder
from cnn_jax.training.state import TrainState, variables_for_evaluation


def train(config: Config) -> dict[str, Any]:
    """Trains, or goes on with, the run in `config.train.workdir`; returns the summary that is written there.

    Raises:
        UserError: a mistake in the config, or a folder that holds another run.
        TrainingStopped: Ctrl-C, or a loss that is not finite.
    """
    runtime.prepare(config.train)
    run = Path(config.train.workdir or f"runs/{config.experiment}")
    if run.exists() and not run.is_dir():
        raise UserError(f"given --workdir {run}, which is a file; expected a folder; give another")
    if jax.process_index() == 0:
        files.bring_back(run)  # what a start that was killed had set aside
    if not config.train.fresh and _is_finished(run, config):
        print(f"finished already: {run / files.REPORT}; give --fresh to start over or another --workdir")
        return files.read_json(run, files.SUMMARY)
    print("preparing  data and initial weights …", flush=True)
    resumes = not config.train.fresh and has_checkpoint(run / files.CHECKPOINTS) and (run / files.PREPROCESS).exists()
    experiment = make_experiment(config, resumed=files.read_preprocess(run) if resumes else None)
    if resumes and (known := files.read_classes(run)) != tuple(experiment.class_names):
        raise UserError(
            f"given {config.data.dataset}, whose classes are now {', '.join(experiment.class_names)}; expected those "
            f"that {run} has been trained on, {', '.join(known)}; give --fresh to start over or another --workdir"
        )
    new = not run.exists()
    try:
        return _start(experiment, run)
    except BaseException:
        if jax.process_index() == 0:
            files.bring_back(run)  # if it ended before it has compiled
            if new and run.is_dir() and not any(run.iterdir()):
                run.rmdir()
        raise


def _start(experiment: Experiment, run: Path) -> dict[str, Any]:
    facts = runtime.environment(runtime.command_line())
    first = jax.process_index() == 0
    if first:
        _open_folder(run, experiment, facts)
    if jax.process_count() > 1:  # nobody looks for checkpoints before --fresh has removed them
        multihost_utils.sync_global_devices("run folder")
    _banner(experiment, facts, run)
    with Checkpoints(run / files.CHECKPOINTS) as checkpoints:
        with StopRequest() as stop:
            seconds = _train(experiment, run, checkpoints, stop)
        return _finish(experiment, run, checkpoints, facts, seconds)


def _is_finished(run: Path, config: Config) -> bool:
    """Whether the folder holds this very run, finished.

    Raises:
        UserError: it holds another run that has trained, or one whose config cannot be read.
    """
    if not _has_trained(run):
        return False
    if not (run / files.CONFIG).exists():
        raise UserError(
            f"given run folder {run}, with checkpoints or weights and no {files.CONFIG}; expected that of their run; "
            "put it back, or give --fresh to start over, or another --workdir"
        )
    try:
        saved = Config.load(run / files.CONFIG)
    except UserError as error:
        raise UserError(f"{error}, or give --fresh to start over, or another --workdir") from error
    differences = config.difference(saved)
    if differences:
        raise UserError(
            f"given run folder {run}, which holds a run with another config ({'; '.join(differences)}); "
            "give another --workdir, the same values, or --fresh to start over"
        )
    return (run / files.SUMMARY).exists() and (run / files.WEIGHTS).exists()  # lost weights are written again


def _has_trained(run: Path) -> bool:
    """Whether the folder holds more than the start of a run: something that a new one would lose."""
    return has_checkpoint(run / files.CHECKPOINTS) or any((run / n).exists() for n in (files.WEIGHTS, files.SUMMARY))


def _open_folder(run: Path, experiment: Experiment, facts: dict[str, Any]) -> None:
    """Writes what describes the run. `--fresh`, and a start without a checkpoint, set its files aside and no others."""
    fresh = experiment.config.train.fresh or not any((run / name).exists() for name in files.ALL)
    if not fresh and not has_checkpoint(run / files.CHECKPOINTS) and (run / files.METRICS).exists():
        print(f"warning: no checkpoint in {run}; starting from step 0", file=sys.stderr)
        fresh = True
    if fresh:
        files.set_aside(run)
    # Whoever repeats the config wants to keep the run.
    files.write_text(run / files.CONFIG, experiment.config.override(fresh=False).to_json())
    files.write_text(run / files.CLASSES, "\n".join(experiment.class_names) + "\n")
    files.write_text(run / files.PREPROCESS, experiment.preprocess.to_json())
    files.write_text(run / files.ENVIRONMENT, json.dumps(facts, indent=2) + "\n")


def _banner(experiment: Experiment, facts: dict[str, Any], run: Path) -> None:
    config, plan = experiment.config, experiment.plan
    shape = "x".join(map(str, experiment.preprocess.image_shape))
    where = "resident on the device" if jax.tree.leaves(experiment.data["train"].arrays) else "streamed"
    members = config.train.members
    step_flops = 3 * experiment.flops_per_image * config.data.batch_size * members
    lines = {
        "cnn_jax": f"{facts['cnn_jax']}, jax {facts['jax']}, python {facts['python']}",
        "devices": f"{facts['platform']}: {facts['device']}; "
        f"using {len(experiment.parallel.devices)} by {config.train.parallel}; convolutions {facts['convolutions']}",
        "data": f"{config.data.dataset}, {shape}, {len(experiment.class_names)} classes; "
        f"{', '.join(f'{name} {len(source):,}' for name, source in experiment.sources.items())}; "
        f"{where}",
        "model": f"{f'{members} x ' if members > 1 else ''}{config.model.model}, {experiment.parameters:,} parameters, "
        f"{experiment.flops_per_image / 1e6:,.2f} MFLOP an image forward, {config.model.precision}",
        "optimizer": experiment.optimizer.description,
        "training": f"{plan.total_steps:,} steps of {config.data.batch_size} images "
        f"({plan.total_steps / plan.steps_per_epoch:.1f} epochs), about {step_flops / 1e9:,.2f} GFLOP a step",
        "folder": str(run),
    }
    for name, text in lines.items():
        print(f"{name:10} {text}", flush=True)


def _train(experiment: Experiment, run: Path, checkpoints: Checkpoints, stop: StopRequest) -> float:
    """Runs the loop; returns the seconds that the run took."""
    config, parallel, plan = experiment.config, experiment.parallel, experiment.plan
    arrays = parallel.place(experiment.data["train"].arrays)
    restored = checkpoints.restore(experiment.state, parallel.replicated)
    first_step, state = restored or (0, parallel.place(experiment.state))
    if restored:
        print(f"resuming   from step {first_step}", flush=True)
        _tell_of_lost(run, first_step)
    display = Display(
        total_steps=plan.total_steps,
        first_step=first_step,
        steps_per_epoch=plan.steps_per_epoch,
        batch_size=config.data.batch_size,
        flops=3 * experiment.flops_per_image * config.data.batch_size * config.train.members,
        devices=len(parallel.devices),
    )
    steps = CompiledSteps(experiment, arrays, display)
    evaluator = experiment.evaluator("validation")
    folder = run if jax.process_index() == 0 else None
    # Closed here: at the exit of Python, memory that the processes which read share with us would be left behind.
    with closing(experiment.data["train"].train_items(first_step)) as items, closing(evaluator):
        ahead = list(itertools.islice(items, max(plan.chunk_sizes(first_step), default=0)))
        for count in plan.chunk_sizes(first_step):  # before any clock runs
            steps.prepare(state, ahead[:count])
        if stop.requested and first_step == 0:
            raise TrainingStopped(
                "stopped before the first step; nothing was trained, what was there is kept", STOP_CODE
            )
        if folder:
            files.forget(run)  # the new run can be started: what it replaces goes
        feed = itertools.chain(ahead, items)
        del ahead
        schedule, batch_size = experiment.optimizer.schedule, config.data.batch_size
        with display, closing(Recorder(folder, plan, schedule, batch_size, display, first_step)) as recorder:
            run_loop(
                state,
                first_step,
                plan,
                run_steps=steps,
                items=feed,
                validate=lambda state: evaluator.metrics(variables_for_evaluation(state)),
                checkpoints=checkpoints,
                recorder=recorder,
                stop=stop,
            )
        checkpoints.wait()
        return recorder.seconds


def _tell_of_lost(run: Path, step: int) -> None:
    """Warns if the run has been further than the checkpoint that was found."""
    last = max((row["step"] for row in files.read_metrics(run) if row["kind"] == "validation"), default=0)
    if last > step:
        print(
            f"warning: no checkpoint of step {last}, which was validated; falling back to step {step}", file=sys.stderr
        )


class CompiledSteps:
    """Runs n steps in one call; compiles for each n the first time it is seen, and says so."""

    def __init__(self, experiment: Experiment, arrays: Any, display: Display):
        self._experiment, self._display = experiment, display
        self.arrays = (experiment.parallel.place(of_members(experiment.config)), arrays)
        self.compiled: dict[int, Any] = {}
        self._scan = experiment.plan.scan_steps > 1

    def __call__(self, state: TrainState, items: list[Any], count: int) -> tuple[TrainState, Any]:
        item = self.prepare(state, items)
        return self.compiled[count](state, self.arrays, item)

    def prepare(self, state: TrainState, items: list[Any]) -> Any:
        """Places the items of one call on the devices, and compiles for their number if that is new."""
        item = self._experiment.parallel.place_item(stack(items) if self._scan else items[0], stacked=self._scan)
        if len(items) not in self.compiled:
            self.compiled[len(items)] = self._compile(state, item)
        return item

    def _compile(self, state: TrainState, item: Any) -> Any:
        experiment, gather = self._experiment, self._experiment.data["train"].gather

        # Seeds are arguments of the program, beside the data: it is in the cache for a run of another seed.
        def with_seeds(arrays: Any, item: Any) -> Any:
            own, data = arrays
            return own, gather(data, item)

        def step(state: Any, batch: Any) -> Any:
            own, images = batch
            return experiment.train_step_of(*own)(state, images)

        self._display.say("compiling  …")
        start = time.perf_counter()
        compiled = experiment.parallel.compile_train(step, with_seeds, state, self.arrays, item, self._scan)
        memory = compiled.memory_analysis()
        need = "" if memory is None else f", about {_bytes(memory)} of memory a device"
        self._display.say(f"compiled   in {time.perf_counter() - start:.1f} s{need}")
        return compiled


def _bytes(memory: Any) -> str:
    # Donated arguments are outputs too and are counted once.
    size = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return f"{max(size - memory.alias_size_in_bytes, 0) / 2**20:,.0f} MiB"


def _finish(
    experiment: Experiment, run: Path, checkpoints: Checkpoints, facts: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Chooses the weights by validation, reads the test set once, writes weights, summary and report."""
    config, plan = experiment.config, experiment.plan
    best = checkpoints.best_step() if config.train.select == "best" else plan.total_steps
    restored = checkpoints.restore(experiment.state, experiment.parallel.replicated, step=best)
    assert restored is not None, "the loop saves a checkpoint after its last step"
    step, state = restored
    variables = variables_for_evaluation(state)
    validation = checkpoints.metrics(step) or experiment.evaluator("validation").metrics(variables)
    test, labels, logits = experiment.evaluator("test").predictions(variables)
    summary = {
        "experiment": config.experiment,
        "model": config.model.model,
        "dataset": config.data.dataset,
        "seed": config.train.seed,
        "epochs": plan.total_steps / plan.steps_per_epoch,
        "steps": plan.total_steps,
        "best_step": step,
        "validation_accuracy": validation["accuracy"],
        "validation_loss": validation["loss"],
        "validation_count": len(experiment.sources["validation"]),
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "test_count": len(experiment.sources["test"]),
        "seconds": seconds,
        "parameters": experiment.parameters,
        "flops_per_image": experiment.flops_per_image,
        "device": facts["device"],
        "jax": facts["jax"],
        "command": facts["command"],
        "commit": facts["commit"],
        "finished": True,
    }
    if jax.process_index() == 0:
        _write(experiment, run, summary, jax.device_get(variables), test, labels, logits)
    print(
        f"finished   validation {validation['accuracy']:.2%}, test {test['accuracy']:.2%} "
        f"({summary['test_count']:,} images) with the weights of step {step}; {run / files.REPORT}",
        flush=True,
    )
    return summary


def _write(
    experiment: Experiment,
    run: Path,
    summary: dict[str, Any],
    variables: Any,
    test: dict[str, float],
    labels: np.ndarray,
    logits: np.ndarray,
) -> None:
    plan = experiment.plan
    row = {"kind": "test", "step": summary["best_step"], "epoch": summary["best_step"] / plan.steps_per_epoch}
    files.append_metrics(run, row | test | {"seconds": summary["seconds"]})
    about = {name: summary[name] for name in ("experiment", "model", "dataset", "seed", "best_step", "commit")}
    save_weights(run / files.WEIGHTS, variables, {"cnn_jax": json.dumps(about, sort_keys=True)})
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    write_report(
        run,
        summary=summary,
        images=_Images(experiment.sources["test"]),
        labels=labels,
        probabilities=shifted / shifted.sum(-1, keepdims=True),
        classes=experiment.class_names,
        split_name="test",
    )
    # Last of all: a folder with a summary is a finished run.
    files.write_text(run / files.SUMMARY, json.dumps(summary, indent=2) + "\n")


class _Images(Sequence[np.ndarray]):
    """The images of a source as a sequence, read when they are asked for."""

    def __init__(self, source: Source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        return self._source[index]["image"]
