"""What a comparison is: candidates, the trials that were run for each, and what came out."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cnn_jax.optim.spaces import Parameter
from cnn_jax.report.metric import Metric
from cnn_jax.tasks import Selection

__all__ = ["Candidate", "Parameter", "Study", "Table", "Trial"]


@dataclass(frozen=True)
class Trial:
    """One training run of a study.

    Attributes:
        candidate: the label of what is compared, such as "adam".
        phase: "search" with hyperparameters drawn from the candidate's space, or "final": the best of these again, on
            a fresh seed.
        number: of the drawn point, 0, 1, …; a final trial has the number of the point that it repeats.
        seed: of initial weights and data order. All search trials share one; final trials have others, the same ones
            for every candidate.
        settings: the hyperparameters that were drawn, by config field or optimizer argument.
        status: "diverged" if the loss became infinite or NaN.
        steps: number of updates made.
        validation: the task's metrics of the selected weights, such as {"loss": 0.1, "accuracy": 0.97}; {} if the
            trial diverged before it was validated.
        test: likewise on the test set, of final trials; {} for search trials, which never see it.
        steps_to_target: first step whose validation reached the study's target; None if none did.
        together: number of trials that were trained at once with this one, itself included; their share of the time
            is not known, so the times are those of all.
        seconds: of training steps, without compilation and validation.
        seconds_to_target: the same clock at `steps_to_target`.
        rows: the rows of the run's metrics.jsonl, kinds "train" and "validation".
    """

    candidate: str
    phase: Literal["search", "final"]
    number: int
    seed: int
    settings: Mapping[str, Any]
    status: Literal["finished", "diverged"]
    steps: int
    validation: Mapping[str, float]
    test: Mapping[str, float] = field(default_factory=dict)
    together: int = 1
    steps_to_target: int | None = None
    seconds: float = 0.0
    seconds_to_target: float | None = None
    rows: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Candidate:
    """One of the things that are compared.

    Attributes:
        label: its name in tables and pictures.
        fields: the config fields that make it.
        space: the hyperparameters that are searched: a config field such as learning_rate, or an argument of the
            optimizer such as b1.
    """

    label: str
    fields: Mapping[str, Any]
    space: Mapping[str, Parameter]

    def searches(self, points: int) -> int:
        """Returns the number of its search trials if `points` are tried: one if there is nothing to search."""
        return points if self.space else 1


_LOSS_FIELDS = ("loss", "label_smoothing", "balance")  # what one loss says, another does not


def losses_differ(candidates: Sequence[Candidate]) -> bool:
    """Whether candidates are trained on losses of different kinds, whose values cannot be compared."""
    return len({str([candidate.fields.get(name) for name in _LOSS_FIELDS]) for candidate in candidates}) > 1


@dataclass(frozen=True, repr=False)
class Study:
    """A comparison and the trials finished so far.

    Attributes:
        folder: where it is kept.
        candidates: what is compared; the first that has a finished search trial is the baseline.
        points: number of hyperparameter settings tried for each candidate that has something to search.
        seeds: number of final runs of each candidate.
        budget: the length of a trial as it was asked for, such as "3epochs", "500steps" or "60seconds".
        target: the value of the selection metric on validation whose time is measured; None until it is known.
        selection: the metric that chooses, and its direction.
        metrics: the task's metrics: name → how it is shown.
        trials: in the order of candidates, search before final, then by number and seed.
        facts: device, versions and commit, by name; the model and the data set, too.
        warnings: what a reader must know: sentences.
    """

    folder: Path
    candidates: Sequence[Candidate]
    points: int
    seeds: int
    budget: str
    target: float | None
    selection: Selection
    metrics: Mapping[str, Metric]
    trials: Sequence[Trial]
    facts: Mapping[str, str]
    warnings: Sequence[str] = ()

    @property
    def table(self) -> "Table":
        """A row for each candidate, best first, as shown on the page: a list of dicts that prints as a table."""
        from cnn_jax.studies.tables import table  # it needs this module

        return Table(table(self))

    def plot(self) -> Any:
        """Plots the study; returns a matplotlib `Figure`, which notebooks show."""
        from cnn_jax.studies.figures import overview

        return overview(self)

    def __repr__(self) -> str:
        labels = ", ".join(candidate.label for candidate in self.candidates)
        return f"<Study of {labels}: {len(self.trials)} trials; {self.folder}>"


class Table(list[dict[str, str]]):
    """Rows of text that print as a table, also in a notebook."""

    def __repr__(self) -> str:
        if not self:
            return "(no rows)"
        rows = [list(self[0]), *(list(row.values()) for row in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(f"{text:<{width}}" for text, width in zip(row, widths)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        """Shows the rows in a notebook."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in (self[0] if self else ()))
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(v)}</td>' for v in row.values())}</tr>" for row in self)
        return f"<table><tr>{head}</tr>{rows}</table>"
