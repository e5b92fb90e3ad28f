"""What the table says of a row's settings, in a few words made from them."""

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]
_NAMES = {
    **{"adam": "Adam", "gradient_descent": "gradient descent", "nesterov": "Nesterov's momentum"},
    **{"one_cycle": "one-cycle rate", "exponential": "exponential decay", "step": "stepwise decay"},
}


def setting(settings: Settings, recipe: Settings) -> str:
    """Names what differs from the published recipe, or is not stated there, and the recipe in brackets.

    Args:
        settings: of a measurement.
        recipe: of the published one, `Row.recipe`.

    >>> setting({"optimizer": "adam", "batch_size": 128, "epochs": 8}, {"optimizer": "gradient_descent", "epochs": 800})
    'Adam, batches of 128, 8 epochs (published: gradient descent, 800 epochs)'
    >>> setting({"train_split": "train[:20000]", "model_args": ["k=3", "refit=true"]}, {})
    '20,000 training images, k=3'
    >>> setting({"epochs": 20, "learning_rate": 0.1}, {"epochs": 20})
    'as published'
    """
    ours, theirs = _words(settings), _words(recipe)
    differing = [name for name, words in ours.items() if theirs.get(name) != words]
    published = ", ".join(theirs[name] for name in differing if name in theirs)
    text = ", ".join(ours[name] for name in differing)
    return f"{text} (published: {published})" if published else text or ("as published" if theirs else "")


def smaller(settings: Settings, full: Settings) -> str:
    """Says in what a measurement is smaller than that with the full budget; "" if it is not.

    >>> smaller({"epochs": 8, "seeds": 1}, {"epochs": 800, "seeds": 5})
    'may be worse: fewer epochs than with the full budget'
    >>> smaller({"epochs": 8}, {"epochs": 8})
    ''
    """
    ours, theirs = _words(settings), _words(full)
    fewer = {
        "epochs": settings.get("epochs", 0) < full.get("epochs", 0),
        "training images": ours.get("train_split") != theirs.get("train_split"),
        "shifts": ours.get("model_args") != theirs.get("model_args"),
        "columns": _columns(settings) < _columns(full),
    }
    found = [words for words, is_fewer in fewer.items() if is_fewer]
    return f"may be worse: fewer {' and '.join(found)} than with the full budget" if found else ""


def _words(settings: Settings) -> dict[str, str]:
    """Each of the settings that the table names, in words."""
    named = {name: str(settings[name]) for name in ("optimizer", "schedule") if name in settings}
    words = {name: _NAMES.get(value, value) for name, value in named.items()}
    if (size := settings.get("batch_size")) is not None:
        words["batch_size"] = "single images" if size == 1 else f"batches of {size}"
    if "epochs" in settings:
        words["epochs"] = f"{settings['epochs']} epochs"
    if "train_split" in settings:
        words["train_split"] = f"{int(settings['train_split'].strip('train[:]')):,} training images"
    if columns := _columns(settings):
        words["columns"] = f"{columns} columns"
    if args := [arg for arg in settings.get("model_args", ()) if arg != "refit=true"]:
        words["model_args"] = ", ".join(args)
    return words


def _columns(settings: Settings) -> int:
    """The number of a committee's networks; 0 for other rows."""
    return settings.get("columns") or len(settings.get("datasets", ())) * settings.get("members", 1)
