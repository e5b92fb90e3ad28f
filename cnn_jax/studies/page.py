"""The page of a comparison: `write_page` writes STUDY/study.html, which opens anywhere, its pictures and its table."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cnn_jax.arguments import as_text
from cnn_jax.errors import counted
from cnn_jax.report import figures as report_figures
from cnn_jax.report import html
from cnn_jax.storage import durable
from cnn_jax.studies import figures, sentences, tables
from cnn_jax.studies.outcome import finished, shown
from cnn_jax.studies.statistics import CONFIDENCE, FEW, MOST
from cnn_jax.studies.study import Parameter, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, TABLE, MARKDOWN, PLOTS = "study.html", "table.csv", "table.md", "plots"
SPEED = ("candidate", "steps to target", "seconds to target", "ms per step", "B (steps)", "B (seconds)", "diverged")
# The columns of a table can be sorted by a click on their name. Cells such as "1,234", "+0.1 [−0.2, 0.3]", "∞" and "–".
SORT = """<script>
for (const table of document.querySelectorAll("table:has(thead)")) {
  const value = (row, i) => {
    const text = row.cells[i].textContent.replace(/,(?=\\d{3})/g, "").replace(/−/g, "-").replace(/^< /, "");
    return text.startsWith("∞") ? Infinity : text === "–" ? NaN : parseFloat(text);
  };
  for (const [i, head] of [...table.tHead.rows[0].cells].entries()) {
    head.tabIndex = 0; head.style.cursor = "pointer"; head.title = "sort";
    head.onkeydown = event => event.key === "Enter" && head.onclick();
    head.onclick = () => {
      const up = head.ariaSort !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.ariaSort = up ? "ascending" : "descending";
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a, i), value(b, i)];
        if (isNaN(x) && isNaN(y)) return (up ? 1 : -1) * a.cells[i].textContent.localeCompare(b.cells[i].textContent);
        if (isNaN(x) || isNaN(y)) return isNaN(x) ? 1 : -1;
        return (up ? 1 : -1) * (x === y ? 0 : x < y ? -1 : 1);
      });
      table.tBodies[0].append(...rows);
    };
  }
}
</script>"""


def write_page(study: Study) -> Path:
    """Writes the page of a study, its pictures in plots/ and its table as table.csv and table.md; returns the page.

    The page of an unfinished study shows what is known. table.csv has no times by the clock: a study that was
    interrupted ends with the same file as one that was not.
    """
    drawn = draw(study)
    (study.folder / PLOTS).mkdir(parents=True, exist_ok=True)
    for name, data in drawn.items():
        durable.write(study.folder / PLOTS / f"{name}.png", data)
    durable.write(study.folder / TABLE, tables.csv_text(study).encode())
    durable.write(study.folder / MARKDOWN, tables.markdown(study).encode())
    body = [
        html.lead(sentences.headline(study)),
        html.section("Warnings", "What to keep in mind.", html.bullets(sentences.warnings(study))),
        _tables(study),
        *(_picture(study, name, drawn[name]) for name in PICTURES if name in drawn),
        _trials(study),
        _record(study),
        SORT,
    ]
    facts = study.facts
    on = " on ".join(facts[name].partition(",")[0] for name in ("model", "data") if name in facts)
    compared = " compared" if len(study.candidates) > 1 else ""
    title = f"{counted(len(study.candidates), 'candidate')}{compared}: {on or study.folder.name}"
    subtitle = (
        f"{_searches(study)} and {counted(study.seeds, 'final run')} each, of {_budget(study.budget)}; "
        f"{facts.get('device', 'unknown device')}{'' if finished(study) else '; unfinished'}"
    )
    durable.write(study.folder / PAGE, html.page(title, subtitle, body).encode())
    return study.folder / PAGE


def _searches(study: Study) -> str:
    """Such as "16 search trials", and who has fewer."""
    planned = {candidate.label: candidate.searches(study.points) for candidate in study.candidates}
    most = max(planned.values())
    fewer = [label for label, count in planned.items() if count < most]
    return counted(most, "search trial") + (f" ({', '.join(fewer)}: 1)" if fewer else "")


def draw(study: Study) -> dict[str, bytes]:
    """Returns the pictures as PNG files by name, those that the study has trials for."""
    with report_figures.style([candidate.label for candidate in study.candidates]):
        drawn = {name: make(study) for name, (make, *_) in PICTURES.items()} | {"overview": figures.overview(study)}
        return {name: report_figures.png(figure) for name, figure in drawn.items() if figure is not None}


# name → function, title, how to read it
PICTURES: dict[str, tuple[Callable[[Study], "Figure | None"], str, str]] = {
    "steps": (
        lambda study: figures.curves(study, "steps"),
        "Training, by steps",
        "Lines: the mean over the final runs, one per seed; bands: from the worst to the best. Before the final runs: "
        "the best search trial of each candidate.",
    ),
    "seconds": (
        lambda study: figures.curves(study, "seconds"),
        "Training, by time",
        "The same against seconds of training, without compilation and validation: costlier steps stretch a line to "
        "the right.",
    ),
    "sensitivity": (
        figures.sensitivity,
        "Sensitivity to the learning rate",
        "Points: search trials (× diverged). Line and band: median and quartiles of five neighbours. A wide plateau "
        "needs little tuning; a peak at the end of the range means that the range is too narrow. Grey: the others.",
    ),
    "best_after": (
        figures.best_after_trials,
        "Cost of tuning",
        "The best validation to expect of k search trials drawn at random from those made. A line that is flat early "
        "needs few trials; where lines cross, fewer trials make another candidate the best. A trial that diverged "
        "counts as the worst finished one of all; a candidate of which none finished has no line.",
    ),
    "time_to_target": (
        figures.time_to_target,
        "Time to the target",
        "Points: the final runs; bars: their median. A run that never reached the target on validation is at ∞.",
    ),
    "profile": (
        figures.performance_profile,
        "Performance profile",
        "Each seed is a problem. ρ(τ) is the share of seeds on which a candidate reached the target in at most τ times "
        f"the shortest time of all. The score B is the mean of ρ from τ = 1 to {MOST:g}: 1 is the fastest on every "
        f"seed, 0 never within {MOST:g} times the fastest.",
    ),
    "differences": (
        figures.differences,
        "Test set, paired by seed",
        "Points: differences from the baseline with the same seed; diamond: their mean; bar: its "
        f"{100 * CONFIDENCE:.0f} % bootstrap interval, of {FEW} seeds or more. An interval that includes 0 shows no "
        "difference. Last: the best two by validation.",
    ),
}


def _picture(study: Study, name: str, data: bytes) -> str:
    _, title, said = PICTURES[name]
    return html.section(title, said, html.figure((data, f"{title}. {said}"), report_figures.DPI / 100))


def _tables(study: Study) -> str:
    rows = tables.table(study)
    speed = [*SPEED, *(column for column in rows[0] if column.startswith("best of search")), "its settings"]
    results = ["candidate", *(column for column in rows[0] if column not in speed)]
    found = (
        "Best first, ranked by validation; the test set chooses nothing. ± is the 95 % confidence interval of the mean "
        f"over seeds (Student). A difference is the mean over seeds{_points(study)} with a bootstrap interval; p is "
        "from a paired t-test, adjusted for the number of candidates (Holm). A bootstrap interval of five seeds is "
        "narrow (it holds the truth in 84 % of cases, not 95 %), so a difference counts as shown only if p is below "
        "0.05, too; fewer seeds get none."
    )
    quick = "Medians over the final runs; ∞ if half of them missed the target. B: see the performance profile, below."
    return html.section("Results", found, _part(rows, results)) + html.section(
        "Speed and tuning", quick, _part(rows, speed)
    )


def _part(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> str:
    used = [column for column in columns if column == "candidate" or any(row[column] != "–" for row in rows)]
    return (
        html.table(used, [[row[column] for column in used] for row in rows], left=used[:1] + ["its settings"])
        if used[1:]
        else ""
    )


def _points(study: Study) -> str:
    return " (percentage points)" if shown(study).percent else ""


def _trials(study: Study) -> str:
    head, rows = tables.trial_rows(study)
    return html.fold(f"All {len(rows)} trials", html.table(head, rows, left=("phase", "")))


def _record(study: Study) -> str:
    settings = {
        "budget of a trial": _budget(study.budget),
        "search trials": study.points,
        "final runs, each with its seed": study.seeds,
        "selected by": f"validation {study.selection.metric}, {_direction(study)}",
        "target": "–" if study.target is None else shown(study).text(study.target),
    }
    spaces = [
        (
            candidate.label,
            ", ".join(f"{name} {_value(value)}" for name, value in candidate.fields.items()),
            name,
            _range(parameter),
        )
        for candidate in study.candidates
        for name, parameter in (candidate.space or {"–": None}).items()
    ]
    head = ("candidate", "fields", "searched", "range")
    return "\n".join(
        [
            html.section(
                "Search spaces", "What each candidate is, and what was tuned.", html.table(head, spaces, words=True)
            ),
            html.section(
                "Settings", "How the study was run.", html.columns(html.facts(settings), html.facts(study.facts))
            ),
        ]
    )


def _value(value: object) -> str:
    return "none" if value in ((), None) else as_text(value)


def _range(parameter: Parameter | None) -> str:
    if parameter is None:
        return "–"
    low, high = parameter.low, parameter.high
    if parameter.complement:
        return f"{1 - high:.6g} to {1 - low:.6g}, uniform in {'log(1 − value)' if parameter.log else 'the value'}"
    return f"{low:g} to {high:g}, uniform in {'log(value)' if parameter.log else 'the value'}"


def _direction(study: Study) -> str:
    return "higher is better" if study.selection.higher_is_better else "lower is better"


def _budget(text: str) -> str:
    """Such as "3 epochs" for "3epochs"."""
    unit = text.lstrip("0123456789._")
    return f"{text[: len(text) - len(unit)]} {unit.strip()}"
