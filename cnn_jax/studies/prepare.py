"""Builds every candidate of a study once: how long its trials are, and what the record of the study says."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cnn_jax.config import NO_TEST, Config
from cnn_jax.data.sources import Source, describe_contents
from cnn_jax.errors import UserError
from cnn_jax.studies.budget import measure_step, parse_budget, steps_of
from cnn_jax.studies.candidates import draw_points, warnings_of, with_settings
from cnn_jax.studies.question import Question
from cnn_jax.studies.record import Record, check_same
from cnn_jax.tasks import Task
from cnn_jax.training import runtime
from cnn_jax.training.experiment import Experiment, make_experiment, open_sources

_OF_SOURCES = ("train_split", "image_size", "channels", "skip_bad_images")  # fields that change what the splits hold


def prepare(question: Question) -> Record:
    """Opens the data and builds every candidate once, so that mistakes are found before anything is written.

    Raises:
        UserError: a candidate does not fit the data.
    """
    sources, budget = _sources(question), parse_budget(question.budget)
    points = draw_points(question.candidates, question.trials, question.base.train.seed)
    steps, epochs, speeds, facts, shapes, task = {}, {}, {}, {}, {}, None
    for candidate in question.candidates:
        label, config = candidate.label, with_settings(question.config(candidate), points[candidate.label][0])
        experiment = make_experiment(_sized(config, question), question.given)
        epochs[label], shapes[label] = experiment.plan.steps_per_epoch, experiment.preprocess.image_shape
        if budget.unit == "seconds":
            speeds[label] = measure_step(experiment)
        steps[label] = steps_of(budget, epochs[label], speeds.get(label))
        if task is None:
            task, facts = experiment.task, _facts(question, experiment)
            _check_losses(question, task)
    assert task is not None
    facts = {"data": f"{question.base.data.dataset}, {_described(sources, shapes)}", **facts}
    return Record(
        settings=question.settings,
        candidates=question.candidates,
        steps=steps,
        steps_per_epoch=epochs,
        seconds_per_step=speeds,
        data=_contents(sources),
        selection=task.selection,
        metrics=task.metrics,
        facts=facts,
        warnings=warnings_of(question.candidates, question.base, question.trials),
    )


def check_data(question: Question, found: Record) -> None:
    """Checks that the data are those that a study began with.

    Raises:
        UserError: they have changed.
    """
    check_same(question.folder, _contents(_sources(question)), found.data)


def with_device(found: Record) -> Record:
    """Returns the record, with a warning if the study goes on on another device than it began on."""
    began, here = found.facts.get("device"), str(runtime.environment("")["device"])
    text = f"The study began on {began} and went on on {here}: seconds of trials from both are not comparable."
    return (
        found if began in (None, here) or text in found.warnings else replace(found, warnings=[*found.warnings, text])
    )


def _check_losses(question: Question, task: Task) -> None:
    """Rejects candidates that would be judged each by a loss of its own."""
    if task.selection.metric == "loss" and len({str(of.fields.get("loss")) for of in question.candidates}) > 1:
        raise UserError(
            "`vary` names loss, but this task is judged by its loss, so each candidate would be judged by another: "
            "vary another field"
        )


Sources = Mapping[str, Mapping[str, Source]]  # the splits of each candidate


def _sources(question: Question) -> Sources:
    """Opens the splits, the test set among them: a mistake in its name is found at the start. No image is read."""
    if question.given.sources:
        return dict.fromkeys((of.label for of in question.candidates), question.given.sources)
    found, opened = {}, {}
    for candidate in question.candidates:
        own = str([candidate.fields.get(name) for name in _OF_SOURCES])
        if own not in opened:
            opened[own] = open_sources(question.config(candidate).resolve())
        found[candidate.label] = opened[own]
    return found


def _contents(sources: Sources) -> dict[str, Any]:
    """What the splits hold: of all candidates, or of each if it is not the same."""
    each = {
        label: {split: describe_contents(own[split]) for split in ("train", "validation")}
        for label, own in sources.items()
    }
    first, *others = each.values()
    if all(other == first for other in others):
        return first
    return {f"{split} of {label}": what for label, own in each.items() for split, what in own.items()}


def _described(sources: Sources, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Shape and sizes of the data: of all candidates, or of each if they are not the same."""
    each = {
        label: f"{'x'.join(map(str, shapes[label]))}; "
        + ", ".join(f"{split} {len(source):,}" for split, source in own.items())
        for label, own in sources.items()
    }
    return (
        each.popitem()[1] if len(set(each.values())) == 1 else "; ".join(f"{of}: {text}" for of, text in each.items())
    )


def _sized(config: Config, question: Question) -> Config:
    """The config to build a candidate once: as long as the budget, and without the test set.

    A budget in seconds is not known in steps yet; a long run suits any warm-up.
    """
    budget = parse_budget(question.budget)
    length: dict[str, Any] = {"epochs": None, "steps": int(budget.amount) if budget.unit == "steps" else 10**6}
    if budget.unit == "epochs":
        length = {"epochs": budget.amount, "steps": None}
    return config.override(**length, test_split=NO_TEST).resolve()


def _facts(question: Question, experiment: Experiment) -> dict[str, str]:
    """What holds for the whole study, by name."""
    environment = runtime.environment(question.command or runtime.command_line())
    names = ("device", "cnn_jax", "jax", "python", "commit", "command")
    config, varied = experiment.config, question.candidates[0].fields
    every = {
        "model": f"{config.model.model}, {experiment.parameters:,} parameters",
        "batch_size": f"{config.data.batch_size} images",
        "optimizer": config.optim.optimizer,
        "schedule": " ".join([config.optim.schedule, *config.optim.schedule_args]),
    }
    return {
        **{name.partition("_")[0]: text for name, text in every.items() if name not in varied},
        **{name: str(environment[name]) for name in names if environment[name] is not None},
    }
