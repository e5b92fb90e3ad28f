"""Builds every candidate of a study once: how long its trials are, and what the record of the study says."""

from collections.abc import Mapping
from typing import Any

from cnn_jax.config import NO_TEST, Config
from cnn_jax.data.sources import Source, describe_contents
from cnn_jax.studies.budget import measure_step, parse_budget, steps_of
from cnn_jax.studies.candidates import draw_points, warnings_of, with_settings
from cnn_jax.studies.question import Question
from cnn_jax.studies.record import Record, check_same
from cnn_jax.training import runtime
from cnn_jax.training.experiment import Experiment, make_experiment, open_sources


def prepare(question: Question) -> Record:
    """Opens the data and builds every candidate once, so that mistakes are found before anything is written.

    Raises:
        UserError: a candidate does not fit the data.
    """
    sources, budget = _sources(question), parse_budget(question.budget)
    points = draw_points(question.candidates, question.trials, question.base.train.seed)
    steps, epochs, speeds, facts, task = {}, {}, {}, {}, None
    for candidate in question.candidates:
        label, config = candidate.label, with_settings(question.config(candidate), points[candidate.label][0])
        experiment = make_experiment(_sized(config, question), question.given)
        epochs[label] = experiment.plan.steps_per_epoch
        if budget.unit == "seconds":
            speeds[label] = measure_step(experiment)
        steps[label] = steps_of(budget, epochs[label], speeds.get(label))
        if task is None:
            task, facts = experiment.task, _facts(question, experiment, sources)
    assert task is not None
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


def _sources(question: Question) -> Mapping[str, Source]:
    """The splits, the test set among them: a mistake in its name is found at the start. No image is read."""
    return question.given.sources or open_sources(question.config(question.candidates[0]).resolve())


def _contents(sources: Mapping[str, Source]) -> dict[str, Any]:
    return {split: describe_contents(sources[split]) for split in ("train", "validation")}


def _sized(config: Config, question: Question) -> Config:
    """The config to build a candidate once: as long as the budget, and without the test set.

    A budget in seconds is not known in steps yet; a long run suits any warm-up.
    """
    budget = parse_budget(question.budget)
    length: dict[str, Any] = {"epochs": None, "steps": int(budget.amount) if budget.unit == "steps" else 10**6}
    if budget.unit == "epochs":
        length = {"epochs": budget.amount, "steps": None}
    return config.override(**length, test_split=NO_TEST).resolve()


def _facts(question: Question, experiment: Experiment, sources: Mapping[str, Source]) -> dict[str, str]:
    """What holds for the whole study, by name."""
    shape = "x".join(map(str, experiment.preprocess.image_shape))
    sizes = ", ".join(f"{name} {len(source):,}" for name, source in sources.items())
    environment = runtime.environment(question.command or runtime.command_line())
    names = ("device", "cnn_jax", "jax", "python", "commit", "command")
    config, varied = experiment.config, question.candidates[0].fields
    every = {
        "model": f"{config.model.model}, {experiment.parameters:,} parameters",
        "batch_size": f"{config.data.batch_size} images",
        "schedule": " ".join([config.optim.schedule, *config.optim.schedule_args]),
    }
    return {
        "data": f"{config.data.dataset}, {shape}; {sizes}",
        **{name.partition("_")[0]: text for name, text in every.items() if name not in varied},
        **{name: str(environment[name]) for name in names if environment[name] is not None},
    }
