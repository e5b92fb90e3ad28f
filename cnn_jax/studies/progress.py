"""A line for each trial of a study: its number of all, what came out, and the time that is left."""

import time
from collections.abc import Sequence

import numpy as np

from cnn_jax.studies.plan import planned_searches, total_trials
from cnn_jax.studies.record import Record
from cnn_jax.studies.study import Study, Trial
from cnn_jax.studies.trials import Planned


class Progress:
    """Prints the lines.

    Args:
        record: of the study.
    """

    def __init__(self, record: Record):
        self._record, self._width = record, max(len(candidate.label) for candidate in record.candidates)
        self._since = 0.0
        # Of the trials of this process, by phase: seconds, steps, and steps if those trained at once counted as one.
        self._spent = {"search": np.zeros(3), "final": np.zeros(3)}

    def start(self) -> None:
        """Starts the clock of the next trials."""
        self._since = time.perf_counter()

    def tell(self, done: Sequence[Planned], study: Study) -> None:
        """Prints the lines of trials that are over.

        Args:
            done: the trials, which were trained at once.
            study: what is known, the trials included.
        """
        seconds, steps = time.perf_counter() - self._since, self._record.steps[done[0].candidate]
        self._spent[done[0].phase] += (seconds, steps * len(done), steps)
        left, total = self._left(study), total_trials(self._record, study)
        for number, planned in enumerate(done, len(study.trials) - len(done) + 1):
            key = (planned.candidate, planned.phase, planned.number, planned.seed)
            trial = next(of for of in study.trials if (of.candidate, of.phase, of.number, of.seed) == key)
            which = f"{planned.number:02d}" if planned.phase == "search" else f"seed {planned.seed}"
            parts = [
                f"trial {number:{len(str(total))}d} of {total}",
                f"{planned.candidate:{self._width}} {which}",
                " ".join(f"{name} {value:.5g}" for name, value in planned.settings.items()),
                self._result(trial, study),
                f"{seconds:.1f} s" + (f" for {len(done)}" if len(done) > 1 else ""),
                f"left {_in_words(left)}",
            ]
            print("  ".join(filter(None, parts)), flush=True)

    def _result(self, trial: Trial, study: Study) -> str:
        if trial.status == "diverged":
            return f"diverged at step {trial.steps}"
        name = study.selection.metric
        metric = study.metrics[name]
        parts = [f"validation {name} {metric.text(trial.validation[name])}"]
        if name in trial.test:
            parts.append(f"test {metric.text(trial.test[name])}")
        if study.target is not None:
            reached = trial.steps_to_target
            parts.append("target missed" if reached is None else f"target at step {reached}")
        return ", ".join(parts)

    def _left(self, study: Study) -> float:
        """Seconds, if a step takes as long as before. Before the first final run, one takes as long as the search."""
        searches = len(planned_searches(study.folder, self._record))
        searched = sum(trial.phase == "search" for trial in study.trials)
        finals = total_trials(self._record, study) - searches - (len(study.trials) - searched)
        every = self._spent["search"] + self._spent["final"]
        seconds, steps, _ = self._spent["search"] if searched < searches else every
        own, made, _ = self._spent["final"]
        pace = own / made if made else every[0] / every[2]
        mean = sum(self._record.steps.values()) / len(self._record.steps)
        return mean * ((searches - searched) * seconds / steps + finals * pace)


def _in_words(seconds: float) -> str:
    """A duration with the unit that suits it.

    >>> _in_words(45.2), _in_words(400.0), _in_words(9000.0)
    ('45 s', '7 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
