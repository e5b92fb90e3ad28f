"""The table of a comparison: as rows of text, Markdown and CSV; and the table of all its trials."""

import csv
import io
import math
from collections.abc import Sequence

from cnn_jax.report.markdown import markdown_table
from cnn_jax.report.metric import Metric
from cnn_jax.studies.outcome import Outcome, baseline_of, best_trial, outcomes, shown, validation
from cnn_jax.studies.statistics import Interval
from cnn_jax.studies.study import Study, Trial

CLOCKED = ("seconds to target", "ms per step", "B (seconds)")  # columns that differ each time a study is run


def table(study: Study) -> list[dict[str, str]]:
    """Returns the table, one row a candidate, best first; see `cnn_jax.studies.outcome.Outcome`."""
    name, metric = study.selection.metric.replace("_", " "), shown(study)
    unit = " (%)" if metric.percent else ""
    rows = []
    for found in outcomes(study):
        final = f", final {found.lost} of {found.finals + found.lost}" if found.lost else ""
        rows.append(
            {
                "candidate": found.candidate,
                f"test {name}{unit}": _mean(found.test, metric),
                f"validation {name}{unit}": _mean(found.validation, metric),
                f"difference from {baseline_of(study)}": difference(found.difference, metric),
                "p (Holm)": p_value(found.p_value),
                "steps to target": time(found.steps),
                "seconds to target": time(found.seconds),
                "ms per step": number(1000 * found.seconds_per_step),
                "B (steps)": _score(found.score_steps),
                "B (seconds)": _score(found.score_seconds),
                "diverged": f"{found.diverged} of {found.searched}{final}",
                f"best of search{unit}": _best(study, found, metric),
                "its settings": settings(found),
            }
        )
    return rows


def markdown(study: Study) -> str:
    """Returns the table in Markdown, without the columns that are empty."""
    rows = table(study)
    used = [column for column in rows[0] if any(row[column] != "–" for row in rows)]
    numbers = [i for i, column in enumerate(used) if column not in ("candidate", "its settings")]
    return markdown_table(used, [[row[column] for column in used] for row in rows], numbers) + "\n"


def csv_text(study: Study) -> str:
    """Returns the table as CSV without the columns that are measured by the clock: equal each time a study is run."""
    rows = [{name: cell for name, cell in row.items() if name not in CLOCKED} for row in table(study)]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def trial_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the table of all trials."""
    names = list(dict.fromkeys(name for trial in study.trials for name in trial.settings))
    metric, name = shown(study), study.selection.metric
    head = ["candidate", "phase", "number", "seed", *names, f"validation {name}", f"test {name}"]
    head += ["steps", "steps to target", "seconds", ""]
    return head, [_trial(study, trial, names, metric, name) for trial in study.trials]


def _trial(study: Study, trial: Trial, names: Sequence[str], metric: Metric, name: str) -> list[str]:
    value, test = validation(study, trial), trial.test.get(name, math.nan)
    reached = math.inf if trial.steps_to_target is None else float(trial.steps_to_target)
    return [
        trial.candidate,
        trial.phase,
        str(trial.number),
        str(trial.seed),
        *(setting(trial.settings[name]) if name in trial.settings else "–" for name in names),
        "–" if math.isnan(value) else metric.text(value),
        "–" if math.isnan(test) else metric.text(test),
        f"{trial.steps:,}",
        time(math.nan if study.target is None else reached),
        number(trial.seconds) + (f" for {trial.together}" if trial.together > 1 else ""),
        "diverged" if trial.status == "diverged" else "best" if trial is best_trial(study, trial.candidate) else "",
    ]


def settings(found: Outcome) -> str:
    """The hyperparameters of the best search trial."""
    if found.best is None:
        return "–"
    return ", ".join(f"{name} {setting(value)}" for name, value in found.best.settings.items()) or "–"


def setting(value: object) -> str:
    """Formats a hyperparameter: decay rates near 1 keep three digits of their distance from 1.

    >>> setting(0.00312345), setting(0.9991234), setting("cosine")
    ('0.00312', '0.999123', 'cosine')
    """
    if not isinstance(value, float) or isinstance(value, bool):
        return str(value)
    if 0.9 <= value < 1:
        return f"{value:.{2 - math.floor(math.log10(1 - value))}f}"
    return f"{value:.3g}"


def difference(found: Interval, metric: Metric) -> str:
    """Formats a difference and its interval, in percentage points if the metric is a share.

    >>> difference(Interval(0.0012, -0.0001, 0.0025), Metric("accuracy", percent=True))
    '+0.12 [−0.01, +0.25]'
    >>> difference(Interval(-0.012, -0.0138, -0.009012), Metric("loss"))
    '−0.0120 [−0.0138, −0.0090]'
    """
    if math.isnan(found.value):
        return "–"
    digits = 2 if metric.percent else _digits((found.high - found.low) / 2)
    each = [_signed(value * metric.scale, digits) for value in found]
    return each[0] if math.isnan(found.low) else f"{each[0]} [{each[1]}, {each[2]}]"


def p_value(value: float) -> str:
    """Formats a p-value.

    >>> p_value(0.00001), p_value(0.0456), p_value(math.nan)
    ('< 0.001', '0.046', '–')
    """
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def time(value: float) -> str:
    """Formats a number of steps or seconds, of which a miss is ∞.

    >>> time(1234.0), time(1.234), time(math.inf), time(math.nan)
    ('1,234', '1.23', '∞', '–')
    """
    return "∞" if math.isinf(value) else number(value)


def number(value: float) -> str:
    """Formats a number with three digits or all before the point; "–" for NaN."""
    return "–" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _best(study: Study, found: Outcome, metric: Metric) -> str:
    value = math.nan if found.best is None else found.best.validation[study.selection.metric]
    return _mean(Interval(value, math.nan, math.nan), metric)


def _score(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _signed(value: float, digits: int | None) -> str:
    return (f"{value:+.3g}" if digits is None else f"{value:+.{digits}f}").replace("-", "−")


def _digits(half: float) -> int | None:
    """How many decimals show two digits of half an interval; None if there is no interval."""
    return max(0, 1 - math.floor(math.log10(half))) if half > 0 else None


def _mean(found: Interval, metric: Metric) -> str:
    if math.isnan(found.value):
        return "–"
    half = (found.high - found.low) / 2
    if metric.percent:
        return f"{100 * found.value:.2f}" + ("" if math.isnan(half) else f" ± {100 * half:.2f}")
    digits = _digits(half)
    return f"{found.value:.4g}" if digits is None else f"{found.value:.{digits}f} ± {half:.{digits}f}"
