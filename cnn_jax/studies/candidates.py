"""What is compared: optimizers with their search spaces, or the values of a config field; and the points to try."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cnn_jax.config import DEPENDENT, Config, as_field, field_types
from cnn_jax.errors import UserError, nearest
from cnn_jax.optim.optimizers import get_optimizer_spec
from cnn_jax.optim.spaces import SPACES, sobol_points, space_of, widened
from cnn_jax.studies.study import Candidate, losses_differ
from cnn_jax.studies.texts import Spaces, name_of

# Fields that a comparison sets itself, or that would make its figures incomparable, and why they cannot be varied.
_NOT_VARIED = {
    **dict.fromkeys(("epochs", "steps"), "the length of a trial is the `budget`"),
    "seed": "`seeds` says how often the best are repeated",
    **dict.fromkeys(("workdir", "fresh", "report", "checkpoints", "logger"), "it changes no result"),
    **dict.fromkeys(
        ("dataset", "data_dir", "validation_split", "test_split", "group_by", "task"),
        "figures on other data are not comparable",
    ),
    **dict.fromkeys(
        ("members", "member_learning_rates", "member_optimizer_args", "distributed"),
        "a trial is one network on one host",
    ),
}


def optimizer_candidates(
    names: Sequence[Any], base: Config, explicit: Collection[str], spaces: Spaces
) -> list[Candidate]:
    """Returns a candidate for each optimizer, with its search space.

    Args:
        names: of optimizers, see `get_optimizer_spec`; or Optax factories, or functions of a module like these.
        base: the config of all.
        explicit: fields that the user set: they hold for every candidate and are not searched.
        spaces: ranges that replace declared ones, or add to them.

    Raises:
        UserError: an unknown optimizer, one named twice, or a range that it does not take.
    """
    found = []
    for name in map(name_of, names):
        get_optimizer_spec(name)
        found.append(_candidate(name, "optimizer", name, base, explicit, spaces))
    return _distinct(found, "optimizers")


def field_candidates(
    field: str, values: Sequence[Any], base: Config, explicit: Collection[str], spaces: Spaces
) -> list[Candidate]:
    """Returns a candidate for each value of a config field; the search space is that of the optimizer.

    Raises:
        UserError: an unknown field, one that cannot be varied, no values, or a value of the wrong type.
    """
    if field not in field_types():
        hint = " or ".join(nearest(field, field_types())) or "model, schedule, augment or batch_size"
        raise UserError(f"`vary` names {field!r}, which is no config field: perhaps you meant {hint}")
    if field in _NOT_VARIED:
        raise UserError(f"`vary` names {field}, but {_NOT_VARIED[field]}: vary another field")
    if field in explicit:
        raise UserError(f"`{field}` is varied and set: drop one")
    if not values:
        raise UserError(f"`vary` gives no values of {field}: write {field}=VALUE,VALUE, or a list in Python")
    values = [as_field(field, value) for value in values]
    found = [_candidate(_label(field, value), field, value, base, explicit, spaces) for value in values]
    return _distinct(found, "vary")


def draw_points(candidates: Sequence[Candidate], trials: int, seed: int) -> dict[str, list[dict[str, float]]]:
    """Draws the hyperparameters to try, by label of the candidate: `trials` for each.

    All candidates share the points of one Sobol sequence, of which each takes as many coordinates as it has parameters:
    their first one, the learning rate, is tried at the same places. A candidate with nothing to search is tried once,
    with the values that are set, or else the optimizer's own.
    """
    dimensions = max(1, *(len(candidate.space) for candidate in candidates))
    points = sobol_points(dimensions, trials, seed).tolist()
    return {
        candidate.label: [
            {name: of.at(share) for (name, of), share in zip(candidate.space.items(), point, strict=False)}
            for point in points[: candidate.searches(trials)]
        ]
        for candidate in candidates
    }


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Returns the config with hyperparameters set: fields by name, and other names as arguments of the optimizer.

    >>> with_settings(Config(), {"learning_rate": 0.1, "b1": 0.8}).optim.optimizer_args
    ('b1=0.8',)
    """
    fields = {name: value for name, value in settings.items() if name in field_types()}
    others = {name: value for name, value in settings.items() if name not in fields}
    kept = [text for text in config.optim.optimizer_args if text.partition("=")[0].strip() not in others]
    args = (*kept, *(f"{name}={value!r}" for name, value in others.items()))
    return config.override(**fields, optimizer_args=args)


def warnings_of(candidates: Sequence[Candidate], base: Config, trials: int) -> list[str]:
    """Returns what a reader must know about the search spaces: sentences."""
    said = (
        ["The training losses of the candidates differ in kind: they are not compared."]
        if losses_differ(candidates)
        else []
    )
    for candidate in candidates if trials > 1 else ():
        name = candidate.fields.get("optimizer", base.optim.optimizer)
        if not candidate.space:
            said.append(f"{candidate.label} has nothing to search: it is tried once.")
        elif name not in SPACES and candidate.space.items() <= space_of(name).items():
            searched = " and ".join(
                f"{of} from {range.low:g} to {range.high:g}" for of, range in candidate.space.items()
            )
            said.append(f"{name} has no declared search space: only {searched} is searched. Add ranges by --spaces.")
    return list(dict.fromkeys(said))


def _candidate(
    label: str, field: str, value: Any, base: Config, explicit: Collection[str], spaces: Spaces
) -> Candidate:
    """A candidate with one value of a field."""
    kept = {name: base.flat()[name] for name in DEPENDENT.get(field, ()) if name in explicit}
    fields = {field: value, **kept}
    config = base.override(**fields)
    config.check_types()
    fixed = {*explicit, *fields, *(text.partition("=")[0].strip() for text in config.optim.optimizer_args)}
    own = spaces.get(config.optim.optimizer, {})
    if both := [name for name in own if name in fixed]:
        raise UserError(f"`spaces` has a range for {both[0]}, which is set: drop one")
    space = {name: of for name, of in widened(config.optim.optimizer, own).items() if name not in fixed}
    return Candidate(label, fields, space)


def _distinct(candidates: list[Candidate], parameter: str) -> list[Candidate]:
    labels = [candidate.label for candidate in candidates]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"`{parameter}` names {label} twice: drop one")
    return candidates


def _label(field: str, value: Any) -> str:
    """A value's name: names speak for themselves, other values need that of the field."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, tuple) else () if value is None else (value,)
    text = "+".join(map(str, parts)) or "none"
    return text if field == "augment" else f"{field}={text}"


def folder_names(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Returns a file name for each label.

    >>> folder_names([Candidate("mine:sgd", {}, {}), Candidate("adam", {}, {})])
    {'mine:sgd': 'mine-sgd', 'adam': 'adam'}
    """
    names = [re.sub(r"[^\w.+=]+", "-", candidate.label)[:60] for candidate in candidates]
    if len({name.lower() for name in names}) < len(names):
        names = [f"{number}-{name}" for number, name in enumerate(names)]
    return {candidate.label: name for candidate, name in zip(candidates, names, strict=True)}
