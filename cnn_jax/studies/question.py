"""What a study asks, checked."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_jax.arguments import as_text
from cnn_jax.config import TRANSIENT, Config
from cnn_jax.errors import UserError
from cnn_jax.studies.budget import parse_budget
from cnn_jax.studies.study import Candidate
from cnn_jax.training.experiment import Given, check_names
from cnn_jax.training.solved import is_solved_by

FOLDER = "runs/compare"
TOGETHER = ("auto", "yes", "no")


@dataclass(frozen=True)
class Question:
    """What a study asks.

    Attributes:
        base: the config of all candidates; its `workdir` is the study's folder.
        explicit: the fields that the user set.
        candidates: what is compared; the first is the baseline.
        trials: points tried for each candidate.
        seeds: final runs of each candidate.
        budget: the length of a trial, see `parse_budget`.
        target: the value of the selection metric on validation whose time is measured; default: what the best point of
            the baseline reached at its end.
        given: objects that replace names in the config.
        command: how the study was started, for the record; default: the command line.
        together: whether the search trials of a candidate are trained at once: "yes" (if they can be), "no", or "auto":
            on GPU and TPU. It changes results by rounding only, so a study may go on the other way.
    """

    base: Config
    explicit: Collection[str]
    candidates: Sequence[Candidate]
    trials: int
    seeds: int
    budget: str
    target: float | None = None
    given: Given = Given()
    command: str | None = None
    together: str = "auto"

    @property
    def folder(self) -> Path:
        """Where the study is kept."""
        return Path(self.base.train.workdir or FOLDER)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes it another study if it differs, by name."""
        asked = {"trials": self.trials, "seeds": self.seeds, "budget": self.budget, "target": self.target}
        compared = {
            "candidates": [
                " ".join(f"{name}={as_text(value)}" for name, value in candidate.fields.items())
                for candidate in self.candidates
            ]
        }
        spaces = {
            f"space of {candidate.label}": {name: vars(of) for name, of in candidate.space.items()}
            for candidate in self.candidates
        }
        unused = {*TRANSIENT, "epochs", "steps"}
        config = {name: value for name, value in self.base.flat().items() if name not in unused}
        return {**compared, **asked, **config, **spaces}

    def config(self, candidate: Candidate) -> Config:
        """Returns the config of a candidate."""
        return self.base.override(**candidate.fields)


def check(question: Question) -> None:
    """Rejects what needs no data to be found wrong.

    Raises:
        UserError: says what is wrong.
    """
    for name in ("trials", "seeds"):
        if getattr(question, name) < 1:
            raise UserError(f"`{name}` is {getattr(question, name)}: set 1 or more")
    if question.together not in TOGETHER:
        raise UserError(f"`together` is {question.together!r}: choose {', '.join(TOGETHER[:-1])} or {TOGETHER[-1]}")
    parse_budget(question.budget)
    for name, advice in (
        ("epochs", "set `budget` instead"),
        ("steps", "set `budget` instead"),
        ("fresh", "delete the study's folder, or set another `workdir`"),
        ("distributed", "a comparison runs on one host"),
    ):
        if name in question.explicit and question.base.flat()[name]:
            raise UserError(f"`{name}` is for a single run: {advice}")
    if question.base.optim.member_learning_rates:
        raise UserError("`member_learning_rates` compares rates in one run: drop it, as rates are searched here")
    for candidate in question.candidates:
        config = question.config(candidate).resolve()
        check_names(config, question.given)
        if is_solved_by(config, question.given):
            raise UserError(f"{config.model.model} is solved for, not trained, so no trial has steps: compare networks")
