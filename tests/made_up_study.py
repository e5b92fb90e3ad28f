"""A study that nobody ran: nine optimizers, 16 trials and 5 seeds each, with curves made of formulas and noise."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cnn_jax.report.metric import Metric
from cnn_jax.studies.study import Candidate, Parameter, Study, Trial
from cnn_jax.tasks import Selection

ACCURACY = {"loss": Metric("cross-entropy (nats)"), "accuracy": Metric("accuracy", percent=True)}
SELECTION = Selection("accuracy", higher_is_better=True)
# candidate → its best rate, its best error, how fast it learns, seconds of a step
OPTIMIZERS = {
    "sgd": (0.2, 0.0130, 0.8, 0.0100),
    "momentum": (0.02, 0.0105, 1.3, 0.0104),
    "nesterov": (0.03, 0.0100, 1.35, 0.0106),
    "adagrad": (0.02, 0.0125, 1.1, 0.0105),
    "adadelta": (1.0, 0.0150, 0.7, 0.0112),
    "rmsprop": (0.0008, 0.0115, 1.4, 0.0107),
    "adam": (0.002, 0.0095, 1.6, 0.0110),
    "adamax": (0.004, 0.0100, 1.4, 0.0110),
    "nadam": (0.003, 0.0093, 1.7, 0.0115),
}
STEPS, EVERY = 1290, 43


def make_study(
    folder: Path,
    points: int = 16,
    seeds: int = 5,
    phases: tuple[str, ...] = ("search", "final"),
    labels: tuple[str, ...] = tuple(OPTIMIZERS),
) -> Study:
    """A study of optimizers on MNIST, with a target of 98 % validation accuracy."""
    trials, candidates = [], []
    for label in labels:
        rate = OPTIMIZERS[label][0]
        space = {"learning_rate": Parameter(rate / 100, rate * 30)}
        if "ada" in label and label != "adagrad":
            space["b1"] = Parameter(0.01, 0.3, complement=True)
        candidates.append(Candidate(label, {"optimizer": label}, space))
        drawn = [_settings(space, number, points) for number in range(points)]
        search = [_trial(label, "search", number, 0, settings) for number, settings in enumerate(drawn)]
        best = max(search, key=lambda trial: SELECTION.key(trial.validation or {"accuracy": 0.0, "loss": math.nan}))
        final = [_trial(label, "final", best.number, seed, best.settings) for seed in range(1, seeds + 1)]
        trials += [*(search if "search" in phases else ()), *(final if "final" in phases else ())]
    return Study(
        folder=folder,
        candidates=candidates,
        points=points,
        seeds=seeds,
        budget="3epochs",
        target=0.98,
        selection=SELECTION,
        metrics=ACCURACY,
        trials=trials,
        facts={
            "command": "python -m cnn_jax compare --dataset mnist --model lenet5 --optimizers sgd momentum",
            "model": "lenet5, 61,706 parameters",
            "data": "mnist, 28x28x1; train 55,000, validation 5,000, test 10,000",
            "device": "1 x cpu (a made-up one)",
            "jax": "9.8.7",
            "commit": "abc1234",
        },
    )


def lower_is_better(study: Study) -> Study:
    """The same study for a task whose only metric is a loss."""
    loss = {"loss": Metric("mean squared error")}

    def only_loss(found: Any) -> dict[str, float]:
        return {"loss": found["loss"]} if found else {}

    trials = [replace(t, validation=only_loss(t.validation), test=only_loss(t.test)) for t in study.trials]
    return replace(study, metrics=loss, selection=Selection("loss", higher_is_better=False), trials=trials, target=0.06)


def _settings(space: dict[str, Parameter], number: int, points: int) -> dict[str, float]:
    places = [((number * 7 + 3) % points + 0.5) / points, ((number * 5 + 1) % points + 0.5) / points]
    found = {}
    for (name, parameter), place in zip(space.items(), places, strict=False):
        value = parameter.low * (parameter.high / parameter.low) ** place
        found[name] = 1 - value if parameter.complement else value
    return found


def _trial(label: str, phase: Any, number: int, seed: int, settings: Mapping[str, Any]) -> Trial:
    best_rate, best_error, speed, step_seconds = OPTIMIZERS[label]
    noise = np.random.default_rng([number, seed, *label.encode()])
    off = math.log10(settings["learning_rate"] / best_rate)
    fails = off > 1.1
    floor = best_error * (1 + 0.8 * off**2) * math.exp(0.03 * noise.normal())
    pace = speed * math.exp(-0.5 * off**2)
    rows, reached = [], None
    for step in range(EVERY, STEPS + 1, EVERY):
        done = step / STEPS
        error = min(0.9, floor + 0.7 * math.exp(-9 * pace * done**0.6) * math.exp(0.1 * noise.normal()))
        loss = 3.0 * error * math.exp(0.05 * noise.normal())
        if fails and done > 0.3:
            rows.append(_row("train", step, math.nan, 0.1, step_seconds))
            break
        rows.append(_row("train", step, loss * 0.8, 1 - error * 0.9, step_seconds))
        rows.append(_row("validation", step, loss, round((1 - error) * 5000) / 5000, step_seconds))
        if rows[-1]["accuracy"] >= 0.98 and reached is None:
            reached = step
    found = {name: rows[-1][name] for name in ("loss", "accuracy")} if not fails else {}
    shift = 0.0004 * noise.normal()
    return Trial(
        candidate=label,
        phase=phase,
        number=number,
        seed=seed,
        settings=settings,
        status="diverged" if fails else "finished",
        steps=rows[-1]["step"],
        validation=found,
        test={"loss": found["loss"] * 1.05, "accuracy": round((found["accuracy"] - shift) * 10000) / 10000}
        if phase == "final" and not fails
        else {},
        steps_to_target=reached,
        seconds=rows[-1]["seconds"],
        seconds_to_target=None if reached is None else reached * step_seconds,
        rows=rows,
    )


def _row(kind: str, step: int, loss: float, accuracy: float, step_seconds: float) -> dict[str, Any]:
    metrics = {"loss": loss, "accuracy": accuracy}
    return {"kind": kind, "step": step, "epoch": 3 * step / STEPS, **metrics, "seconds": step * step_seconds}
