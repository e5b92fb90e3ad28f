"""A line for each trial of a study: its number of all, what came out, and the time that is left."""

import time

from cnn_jax.studies.plan import total_trials
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
        self._seconds, self._steps, self._since = 0.0, 0, 0.0  # of the trials of this process

    def start(self) -> None:
        """Starts the clock of a trial."""
        self._since = time.perf_counter()

    def tell(self, planned: Planned, study: Study) -> None:
        """Prints the line of a trial that is over.

        Args:
            planned: the trial.
            study: what is known, the trial included.
        """
        seconds = time.perf_counter() - self._since
        self._seconds, self._steps = self._seconds + seconds, self._steps + self._record.steps[planned.candidate]
        key = (planned.candidate, planned.phase, planned.number, planned.seed)
        trial = next(of for of in study.trials if (of.candidate, of.phase, of.number, of.seed) == key)
        total = total_trials(self._record, study)
        which = f"{planned.number:02d}" if planned.phase == "search" else f"seed {planned.seed}"
        parts = [
            f"trial {len(study.trials):{len(str(total))}d} of {total}",
            f"{planned.candidate:{self._width}} {which}",
            " ".join(f"{name} {value:.5g}" for name, value in planned.settings.items()),
            self._result(trial, study),
            f"{seconds:.1f} s",
            f"left {_in_words(self._left(study, total))}",
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

    def _left(self, study: Study, total: int) -> float:
        """Seconds, if a step takes as long as before."""
        steps = self._record.steps
        mean = sum(steps.values()) / len(steps)
        return (total - len(study.trials)) * mean * self._seconds / self._steps


def _in_words(seconds: float) -> str:
    """A duration with the unit that suits it.

    >>> _in_words(45.2), _in_words(400.0), _in_words(9000.0)
    ('45 s', '7 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
