"""Opens sources of weights: runs, files, folders of timm models, torchvision and the Hugging Face hub."""

import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from cnn_jax.data.preprocess import Preprocess
from cnn_jax.errors import UserError, unknown
from cnn_jax.models import build
from cnn_jax.storage import run_folder
from cnn_jax.weights.catalog import ARCHITECTURES, TORCHVISION
from cnn_jax.weights.files import SUFFIXES, Which, read_state
from cnn_jax.weights.hub import CONFIG, OLD_WEIGHTS, WEIGHTS, HubFiles, hub_files, read_config, torchvision_file
from cnn_jax.weights.preprocess import PublishedPreprocess, from_timm
from cnn_jax.weights.trained import Trained, load_trained

Maker = Callable[[int | None], nn.Module]  # number of classes, or None for the default → model
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")
RUNS = "runs"  # default folder of runs
METADATA = "cnn_jax"  # key of our record in the header of a weights file; see `cnn_jax.weights.export`

# Arguments of timm's models that leave the network as it is: any value, or only these.
_TIMM_ANY = (
    "bn_momentum",
    "checkpoint_path",
    "drop_block_rate",
    "drop_path_rate",
    "drop_rate",
    "num_classes",
    "pretrained",
)
_TIMM_DEFAULTS = {"aux_logits": False, "features_only": False, "global_pool": "avg", "in_chans": 3, "output_stride": 32}


@dataclass(frozen=True)
class Opened:
    """Weights read from a source, before conversion.

    Attributes:
        where: the source, for messages.
        state: arrays by the source's names, or by our paths if `ours`.
        make: builds the model they are for, if known.
        preprocess: the preprocessing they expect, if known.
        ours: whether `state` uses our paths.
        classes: class names in the order of the logits; empty if unknown.
        ema: whether they are a moving average, see `WeightsFile`.
    """

    where: str
    state: Mapping[str, np.ndarray]
    make: Maker | None = None
    preprocess: Preprocess | None = None
    ours: bool = False
    classes: tuple[str, ...] = ()
    ema: bool | None = None


def open_weights(source: str | Path, which: Which = "auto") -> Opened:
    """Opens a source of weights; see `cnn_jax.weights.load_pretrained` for what it may be.

    Args:
        source: path or name.
        which: weights to take if it holds several, see `read_state`.

    Raises:
        UserError: there is no such source, or it cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        weights = [path / name for name in (WEIGHTS, OLD_WEIGHTS) if (path / name).is_file()]
        if weights and not (path / run_folder.WEIGHTS).exists():
            return _open_timm(HubFiles(weights[0], read_config(path / CONFIG)), str(source), which)
        return _open_run(path)
    if path.is_file():
        is_run = path.name == run_folder.WEIGHTS and (path.parent / run_folder.CONFIG).is_file()
        return _open_run(path.parent) if is_run else _open_file(path, which)
    owner, _, name = str(source).partition("/")
    if owner == "torchvision" and name:
        if name not in TORCHVISION:
            raise unknown("weights of torchvision", name, TORCHVISION)
        entry = TORCHVISION[name]
        state = read_state(torchvision_file(name, entry)).state
        return Opened(str(source), state, _factory(entry.architecture), entry.preprocess)
    # OWNER/NAME on the hub, unless it looks like a mistyped path or a run yet to be trained.
    is_path = owner == RUNS or Path(owner).exists() or path.suffix in SUFFIXES
    if _HUB.fullmatch(str(source)) and not is_path:
        return _open_timm(hub_files(str(source)), str(source), which)
    if owner == RUNS and _is_experiment(name):
        raise UserError(f"no run {source}: train it first with python -m experiments.{name}")
    raise UserError(
        f"no file or folder {source}: name a run folder, a weights file, torchvision/NAME, or OWNER/NAME on the "
        "Hugging Face hub"
    )


def _is_experiment(name: str) -> bool:
    """Whether runs/NAME is the default folder of an experiment."""
    try:
        return name.isidentifier() and importlib.util.find_spec(f"experiments.{name}") is not None
    except ModuleNotFoundError:  # installed without the experiments
        return False


def load_run(run: str | Path) -> Trained:
    """Opens a finished run of one network.

    Raises:
        UserError: the run is not finished, or has several members.
    """
    members = run_folder.read_config(run).committee
    if members > 1:
        raise UserError(f"{run} is a run of {members} networks: train it again with one member, or name another run")
    return load_trained(run)


def _open_run(run: Path) -> Opened:
    trained = load_run(run)
    ema = True if trained.config.optim.ema_decay is not None else None
    return Opened(
        str(run),
        flat(trained.variables),
        maker(trained.model),  # type: ignore[arg-type]  (a module: the run has one member)
        trained.preprocess,
        ours=True,
        classes=trained.classes,
        ema=ema,
    )


def _open_timm(files: HubFiles, where: str, which: Which) -> Opened:
    config = files.config
    architecture = config["architecture"]
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    arguments = {
        name: value
        for name, value in (config.get("model_args") or {}).items()
        if name not in _TIMM_ANY and value != _TIMM_DEFAULTS.get(name)
    }
    if arguments:
        raise UserError(
            f"{where} is a {architecture} with model_args {arguments}, which are not supported: choose other weights"
        )
    read = read_state(files.weights, which)
    preprocess = from_timm(config["pretrained_cfg"], where)
    labels = config.get("label_names") or config["pretrained_cfg"].get("label_names")
    return Opened(where, read.state, _factory(architecture), preprocess, classes=_labels(labels), ema=read.ema)


def _labels(labels: Any) -> tuple[str, ...]:
    """Returns class names, from a list or a dict by index; none if there is not one for every class."""
    if isinstance(labels, dict):
        labels = [labels.get(str(index)) for index in range(len(labels))]
    return tuple(labels) if isinstance(labels, list) and _are_texts(labels) else ()


def _open_file(path: Path, which: Which) -> Opened:
    read = read_state(path, which)
    record = _record(read.metadata)
    opened = Opened(str(path), read.state, classes=_labels(record.get("classes")), ema=read.ema)
    if all(name.startswith(("params/", "batch_stats/")) for name in read.state):
        return replace(opened, ours=True)
    match record:
        case {"model": str(name), "model_args": [*args], "preprocess": {} as fields} if _are_texts(args):
            preprocess = PublishedPreprocess.from_json(json.dumps(fields), path)
            return replace(opened, make=partial(build, name, args=args), preprocess=preprocess)
    for entry in TORCHVISION.values():
        if entry.file == path.name:
            return replace(opened, make=_factory(entry.architecture), preprocess=entry.preprocess)
    return opened


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _record(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns what `cnn_jax.weights.export` or a run wrote to the header of a file; empty for files of others."""
    try:
        record = json.loads(metadata[METADATA])
    except (KeyError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def maker(model: str | nn.Module) -> Maker:
    """Returns a function from the number of classes to the model of this name, or to a copy of this module."""
    if isinstance(model, str):
        return partial(build, model)
    return lambda num_classes: model if num_classes is None else model.clone(num_classes=num_classes)


def _factory(architecture: str) -> Maker:
    factory = ARCHITECTURES[architecture]
    return lambda num_classes: factory() if num_classes is None else factory(num_classes=num_classes)


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of nested mappings by path, such as "params/conv1/kernel"."""
    return dict(traverse_util.flatten_dict(dict(tree), sep="/"))
