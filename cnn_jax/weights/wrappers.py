"""Names in state dicts of wrapped networks, such as `module.conv1.weight` or Lightning's `model.conv1.weight`."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TypeVar

Array = TypeVar("Array")

# Parts of names that come from DataParallel, torch.compile, FSDP and activation checkpointing.
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))


def without_wrappers(name: str) -> str:
    """Removes the parts of a name that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def unwrapped(state: Mapping[str, Array]) -> dict[str, Array]:
    """Removes the parts of names that wrappers add, wherever they are, unless two names would become one.

    >>> unwrapped({"_orig_mod.module.conv.weight": 1, "module.features.module.0.bias": 2})
    {'conv.weight': 1, 'features.0.bias': 2}
    """
    short = {without_wrappers(name): name for name in state}
    return {name: state[long] for name, long in short.items()} if len(short) == len(state) else dict(state)


def prefixes(names: Collection[str], wanted: Collection[str]) -> list[str]:
    """Returns the prefixes, such as "model.", under which most of the wanted names are found.

    Those that find equally many are all returned: a file may hold several networks. Without a prefix that finds more
    than half of `wanted`, returns the empty one.

    >>> prefixes(["net.conv.weight", "net.conv.bias", "loss.weight"], ["conv.weight", "conv.bias"])
    ['net.']
    """
    wanted = frozenset(wanted)
    found: Counter[str] = Counter()
    for name in names:
        starts = (0, *(i + 1 for i, letter in enumerate(name) if letter == "."))
        found.update(name[:start] for start in starts if name[start:] in wanted)
    most = max(found.values(), default=0)
    return [prefix for prefix, count in found.items() if count == most] if 2 * most > len(wanted) else [""]


def is_average(prefix: str) -> bool:
    """Whether a prefix is that of a moving average of weights.

    >>> is_average("ema_model."), is_average("averaged.net."), is_average("schema.")
    (True, True, False)
    """
    return bool(re.search(r"(^|[._])(ema|averaged?|swa)([._]|$)", prefix))
