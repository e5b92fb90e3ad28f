"""The order of a folder's files, and groups of files that no split divides.

Files are ordered by the hash of their class and name, or of class and group, so the order is the same wherever the
folder is.
"""

import collections
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cnn_jax.errors import UserError
from cnn_jax.storage.file_names import composed, readable


class File(NamedTuple):
    """An image of a folder."""

    path: Path
    label: int
    place: float  # in [0, 1), from the hash of class and file name, or of class and group
    group: str | None = None


def compiled(group_by: str | None) -> re.Pattern[str] | None:
    """Compiles `group_by`.

    Raises:
      UserError: it is not a regular expression, or has no group.
    """
    if group_by is None:
        return None
    try:
        grouping = re.compile(group_by)
    except re.error as error:
        raise UserError(f"`group_by` is '{readable(group_by)}', which is not a regular expression: {error}") from error
    if grouping.groups < 1:
        raise UserError(
            f"`group_by` is '{readable(group_by)}', which has no group: put the part of the name that is the same "
            r"for images that belong together in parentheses, as in '^(\d+)_'"
        )
    return grouping


def placed(file: Path, label: int, name: str, grouping: re.Pattern[str] | None) -> File:
    """Returns a file of the class `name`, with its place and its group.

    Raises:
      UserError: `grouping` does not match its name.
    """
    group = None if grouping is None else _group(file, grouping)
    return File(file, label, _place(f"{name}/{composed(file.name) if group is None else group}"), group)


def _place(name: str) -> float:
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:6]) / 2**48


def _group(file: Path, grouping: re.Pattern[str]) -> str:
    """Returns what the first group of `grouping` matches in the name of a file."""
    found = grouping.search(composed(file.name))
    if found is None or found[1] is None:
        raise UserError(
            f"`group_by` '{readable(grouping.pattern)}' does not match {readable(file.name)!r} in "
            f"{readable(file.parent)}: change it, or rename the file"
        )
    return found[1]


def ordered(files: Iterable[File]) -> list[File]:
    """Orders files by hash.

    There are few groups of a class, so group g of n, in the order of the hashes, is put at (g + hash) / n of the whole:
    a tenth of the files has about a tenth of the groups of each class, and one at least of ten.
    """
    files = sorted(files, key=lambda file: (file.place, file.label, file.group or "", file.path))
    if all(file.group is None for file in files):
        return files
    groups = groups_of(files)
    counts = collections.Counter(group[0].label for group in groups)
    before: collections.Counter[int] = collections.Counter()
    positions: list[tuple[float, list[File]]] = []
    for group in groups:
        label = group[0].label
        positions.append(((before[label] + group[0].place) / counts[label], group))
        before[label] += 1
    return [file for _, group in sorted(positions, key=lambda pair: pair[0]) for file in group]


def groups_of(files: Sequence[File]) -> list[list[File]]:
    """Divides sorted files into their groups; a file without a group is one by itself."""
    numbers = itertools.count()
    key = lambda file: (file.label, next(numbers) if file.group is None else file.group)  # noqa: E731
    return [list(group) for _, group in itertools.groupby(files, key)]


def whole_groups(path: str, split: str, rows: range, files: Sequence[File]) -> range:
    """Moves both ends of a range of files to the nearest ends of groups, between two to the first.

    The new end depends only on the old one, so slices that share an end still meet there.

    Raises:
      UserError: no file is left.
    """
    if all(file.group is None for file in files):
        return rows
    ends = [0, *itertools.accumulate(map(len, groups_of(files)))]
    start, stop = (min(ends, key=lambda end: (abs(end - row), end)) for row in (rows.start, rows.stop))
    if start == stop:
        raise UserError(
            f"folder:{path}: {split} has no whole group of images (there are {len(ends) - 1}): choose a larger slice"
        )
    return range(start, stop)


def divide(files: list[File]) -> dict[str, list[File]]:
    """Divides the groups of files, sorted by hash, among the three splits, class by class."""
    splits: dict[str, list[list[File]]] = {"train": [], "validation": [], "test": []}
    classes: dict[int, list[list[File]]] = {}
    for group in groups_of(files):
        classes.setdefault(group[0].label, []).append(group)
    for members in classes.values():
        train = max(1, sum(group[0].place < 0.8 for group in members))
        known = max(train, sum(group[0].place < 0.9 for group in members))  # train and validation
        if len(members) >= 3:
            train = min(train, len(members) - 2)
            known = min(max(known, train + 1), len(members) - 1)
        splits["train"] += members[:train]
        splits["validation"] += members[train:known]
        splits["test"] += members[known:]
    return {part: ordered(itertools.chain(*groups)) for part, groups in splits.items()}
