"""Runs a classical classifier: its variables are solved for, then it is evaluated and written like any other run."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnn_jax.arguments import as_text, load_attribute
from cnn_jax.classical.solved import Examples, Solution, Solved, chosen, is_solved
from cnn_jax.config import Config
from cnn_jax.data import Preprocess, Source, make_pipeline, materialize
from cnn_jax.data.sources import describe_contents
from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import count_flops, count_parameters
from cnn_jax.models.named import make_model
from cnn_jax.storage import run_folder as files
from cnn_jax.tasks import Task, check_labelled, make_task
from cnn_jax.training import runtime
from cnn_jax.training.evaluation import Evaluator
from cnn_jax.training.experiment import Given, sources_of
from cnn_jax.training.outcome import open_folder, results_in, write_results
from cnn_jax.training.parallel import make_parallel
from cnn_jax.training.step import make_eval_step

# Fields that would change what is learned, but that nothing here reads; the others are only of no use.
_REFUSED = ("augment", "balance", "init_from", "freeze", "freeze_until", "members", "precision", "distributed")


@dataclass(frozen=True)
class SolvedRun:
    """The parts of a run whose model is solved for; `config` records what the solution has set."""

    config: Config
    sources: Mapping[str, Source]
    task: Task
    preprocess: Preprocess

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.sources["train"].class_names


def is_solved_by(config: Config, given: Given) -> bool:
    """Whether the run's model is a classical classifier."""
    if given.model is None and ":" not in config.model.model:
        return False
    return is_solved(load_attribute(config.model.model) if given.model is None else given.model)


def solve_in(run: Path, config: Config, given: Given, command: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """Solves for the model's variables and writes the run folder; returns the summary.

    Args:
        run: the run folder.
        config: from `for_solving`.
        given: objects that replace names in the config.
        command: how the run was started, for the record.
        tell: prints a message that names config fields in backticks.

    Raises:
        UserError: a mistake in the config or the data; nothing has been written then.
    """
    print("preparing  data …", flush=True)
    sources = sources_of(config, given)
    train = sources["train"]
    task = given.task or make_task(config.optim, train.class_names)
    for source in sources.values():
        check_labelled(task, source)
    if task.outputs is None:
        raise UserError(f"{config.model.model} is a classifier, and `task` is {task.name}: set classification")
    model: Any = given.model or make_model(config.model.model, task.outputs, args=config.model.model_args)
    if model.num_classes != task.outputs:
        raise UserError(f"the model has {model.num_classes} classes, and the data {task.outputs}: set num_classes")
    model.check(train.image_shape, len(train))
    facts = runtime.environment(command)
    shape = "x".join(map(str, train.image_shape))
    counts = ", ".join(f"{name} {len(source):,}" for name, source in sources.items())
    print(f"devices    {facts['platform']}: {facts['device']}")
    print(f"data       {config.data.dataset}, {shape}, {task.outputs} classes; {counts}")
    print(f"model      {config.model.model}, solved for; folder {run}", flush=True)
    preprocess = replace(Preprocess.fit(train, "none"), levels=getattr(train, "levels", None))
    parts = SolvedRun(config, sources, task, preprocess)
    return _solve(run, parts, model, facts, tell)


def _solve(
    run: Path, parts: SolvedRun, model: Solved, facts: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    train, held_out = (_examples(parts.sources[split]) for split in ("train", "validation"))
    seed = parts.config.train.seed
    start = time.perf_counter()
    solution = model.solve(train, held_out, seed=seed, say=say)
    seconds = time.perf_counter() - start
    validated, seen, evaluation = _evaluate(parts, solution, "validation")
    if model.refit:
        start = time.perf_counter()
        both = Examples(*(np.concatenate(pair) for pair in zip(train, held_out)))
        say(f"solving    again, on all {len(both.labels):,} training and validation images")
        again = solution.model.solve(both, held_out, seed=seed, say=say)
        solution = again._replace(facts=solution.facts | again.facts | {"solved again on": f"{len(both.labels):,}"})
        seconds += time.perf_counter() - start
    split = "test" if "test" in parts.sources else "validation"
    means, collected = validated, seen
    if split == "test":
        means, collected, evaluation = _evaluate(parts, solution, split)
    found = {"validation": validated, split: means}
    summary = _summary(parts, solution, facts, found, seconds, evaluation)
    config = parts.config.override(model_args=_arguments(parts.config, model, solution.model))
    parts = replace(parts, config=config)
    open_folder(run, parts, {name: describe_contents(source) for name, source in parts.sources.items()}, facts)
    files.forget(run)
    for kind, values in found.items():
        files.append_metrics(run, {"kind": kind, "step": 0, "epoch": 0.0} | values | {"seconds": seconds})
    write_results(run, parts, summary, solution.variables, collected, split)
    name, metric = parts.task.selection.metric, parts.task.metrics[parts.task.selection.metric]
    shown = ", ".join(f"{of} {name} {metric.text(summary[f'{of}_{name}'])}" for of in sorted(found, reverse=True))
    times = f"solved in {seconds:.1f} s, evaluated in {summary['evaluation_seconds']:.1f} s"
    say(f"finished   {shown} ({summary[f'{split}_count']:,} images); {times}; {results_in(run, config)}")
    return summary


def _examples(source: Source) -> Examples:
    arrays = materialize(source)
    return Examples(np.asarray(arrays["image"]), np.asarray(arrays["label"]))


def _evaluate(
    parts: SolvedRun, solution: Solution, split: str
) -> tuple[dict[str, float], dict[str, np.ndarray], float]:
    """The means of the task's metrics over a split, what it collects of each example, and the seconds it took."""
    source, data = parts.sources[split], parts.config.data
    step = make_eval_step(solution.model, parts.task, parts.preprocess.normalize_batch)
    pipeline = make_pipeline(source, batch_size=min(data.eval_batch_size, len(source)), seed=0)
    evaluator = Evaluator(step, pipeline, make_parallel("jit", 1, pipeline.batch_size))
    return evaluator.timed_predictions(jax.device_put(solution.variables))


def _summary(
    parts: SolvedRun,
    solution: Solution,
    facts: dict[str, Any],
    found: Mapping[str, Mapping[str, float]],
    seconds: float,
    evaluation: float,
) -> dict[str, Any]:
    config, shape = parts.config, parts.preprocess.image_shape
    stored = getattr(solution.model, "vectors", 0)  # training images that are kept: each is compared with the image
    return {
        "experiment": config.experiment,
        "task": parts.task.name,
        "model": config.model.model,
        "dataset": config.data.dataset,
        "seed": config.train.seed,
        "epochs": 0.0,
        "steps": 0,
        "best_step": 0,
        **{f"{of}_{name}": found[of][name] for of in sorted(found, reverse=True) for name in parts.task.metrics},
        **{f"{of}_count": len(parts.sources[of]) for of in found},
        "seconds": seconds,
        "evaluation_seconds": evaluation,
        "parameters": None if stored else count_parameters(solution.variables),
        "flops_per_image": count_flops(solution.model, shape) + 2 * stored * int(np.prod(shape)),
        "solution": solution.facts,
        **{name: facts[name] for name in ("device", "jax", "command", "commit")},
        "finished": True,
    }


def _arguments(config: Config, model: Solved, solved: Solved) -> tuple[str, ...]:
    """The model arguments of the config, and those that the solution has set."""
    given = [text for text in config.model.model_args if text.partition("=")[0].strip() not in model.solved_fields]
    kept = {name: getattr(model, name) for name in model.solved_fields if getattr(model, name)}
    values = kept | {name: value for name, value in chosen(model, solved).items() if name in model.solved_fields}
    return (*given, *(f"{name}={as_text(value)}" for name, value in values.items()))


def set_by_solving(config: Config, given: Given) -> tuple[str, ...]:
    """Returns the model arguments that a finished run has set, except those that the config sets, too."""
    made = given.model or load_attribute(config.model.model)
    fields = getattr(made, "func", made).solved_fields
    return tuple(name for name in fields if not any(text.startswith(f"{name}=") for text in config.model.model_args))


def for_solving(config: Config, tell: Callable[[str], None]) -> Config:
    """Returns the config of a run that is solved for: these models take images in [0, 1].

    Tells which fields have no effect, and rejects those without which the result would be another one.

    Raises:
        UserError: names the field.
    """
    ours, usual = config.flat(), Config().flat()
    for name in _REFUSED:
        if ours[name] != usual[name]:
            raise UserError(f"`{name}` is for networks, and {config.model.model} is solved for: drop it")
    steps = ("epochs", "steps", "patience", "eval_every", "select")
    fields = [name for name in (*dataclasses.asdict(config.optim), *steps) if name != "task"]
    if unused := [f"`{name}`" for name in fields if ours[name] != usual[name]]:
        tell(f"without    effect: {', '.join(unused)}; {config.model.model} is solved for")
    return config.override(normalize="none")
