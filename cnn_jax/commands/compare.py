"""Compares optimizers, or the values of any other setting, with equal tuning for each.

    python -m cnn_jax compare --dataset mnist --optimizers sgd momentum adam --trials 16 --budget 3epochs
    python -m cnn_jax compare --dataset mnist --vary model=lenet5,tf_cnn --seeds 5

Every candidate gets as many trials, from the same initial weights and on the same batches. The best of each by
validation runs again on fresh seeds, and only these runs read the test set. Repeating the command goes on with the
study.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cnn_jax.commands.experiment import explicit_fields, peek, plain_switches
from cnn_jax.commands.parser import with_flags
from cnn_jax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from cnn_jax.native import build

if TYPE_CHECKING:
    from cnn_jax.studies.question import Question


@dataclass(frozen=True)
class Comparison:
    """What is compared. The flags below hold for every candidate; a hyperparameter set there is not searched."""

    optimizers: tuple[str, ...] = ()
    """Optimizers to compare, each with its search space; any name that --optimizer takes."""
    vary: str | None = None
    """A field and its values, such as model=lenet5,tf_cnn, batch_size=64,128 or augment=none,flip."""
    spaces: tuple[str, ...] = ()
    """Ranges to search in place of declared ones, or besides them, each OPTIMIZER:ARGUMENT=LOW..HIGH, such as
    adam:learning_rate=1e-5..0.1."""
    trials: int | None = None
    """Points tried for each candidate; 1: only usual values; default: 16 for --optimizers, 1 for --vary."""
    seeds: int = 5
    """Final runs of each candidate."""
    budget: str = "3epochs"
    """Length of a trial: 3epochs, 500steps or 60seconds."""
    target: float | None = None
    """Validation metric whose time is measured; default: what the best trial of the first candidate reached."""
    together: Literal["auto", "yes", "no"] = "auto"
    """Train the search trials of a candidate at once, with the same results up to rounding; auto: on GPU and TPU."""
    config: str | None = None
    """config.json of a run, for the defaults of the flags below."""


@dataclass(frozen=True)
class Arguments:
    """All flags of the command."""

    comparison: Comparison
    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig


def main(argv: Sequence[str]) -> None:
    """Runs the study that the arguments ask for, or goes on with it.

    Raises:
        UserError: a mistake in the arguments, or the folder holds something else.
        TrainingStopped: Ctrl-C; what is done is saved.
    """
    run(parse(argv))


def parse(argv: Sequence[str]) -> "Question":
    """Turns arguments into the question of a study.

    Raises:
        UserError: an unreadable saved config, or an invalid value.
        SystemExit: tyro has printed the help (code 0) or an error about a flag (code 2).
    """
    import tyro  # takes 0.1 s

    argv = plain_switches(argv)
    saved = peek(argv, "--config")
    base = Config("compare")
    if saved is not None:
        base = Config.load(os.path.expanduser(saved)).override(workdir=None)
    arguments: Any = tyro.cli(
        tyro.conf.OmitArgPrefixes[Arguments],
        args=list(argv),
        default=Arguments(Comparison(), base.data, base.model, base.optim, base.train),
        prog="python -m cnn_jax compare",
        description=__doc__,
    )
    comparison: Comparison = arguments.comparison
    chosen = Config(base.experiment, arguments.data, arguments.model, arguments.optim, arguments.train)
    explicit = explicit_fields(chosen, base, argv)
    build.start()
    from cnn_jax.studies.compare import ask  # imports JAX

    return ask(
        base.override(**explicit),
        set(explicit),
        comparison.optimizers or None,
        comparison.vary,
        comparison.trials,
        comparison.seeds,
        comparison.budget,
        comparison.target,
        comparison.together,
        spaces=comparison.spaces,
    )


def run(question: "Question") -> None:
    """Runs the study and prints its table."""
    from cnn_jax.studies.engine import run_study
    from cnn_jax.training.checkpoint import quiet_failures

    quiet_failures()
    print(run_study(question, tell=lambda message: print(with_flags(message), flush=True)).table)
