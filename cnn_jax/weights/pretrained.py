"""Loads weights from any source into a ready-to-use model."""

import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from cnn_jax.data.preprocess import Preprocess
from cnn_jax.errors import UserError, unknown
from cnn_jax.models import build
from cnn_jax.storage import run_folder
from cnn_jax.storage.weights_file import check_same_structure
from cnn_jax.weights.catalog import ARCHITECTURES, TORCHVISION
from cnn_jax.weights.convert import flattened_maps, from_torch, torch_name
from cnn_jax.weights.files import SUFFIXES, read_state
from cnn_jax.weights.hub import CONFIG, WEIGHTS, HubFiles, hub_files, read_config, torchvision_file
from cnn_jax.weights.naming import Naming, recognise
from cnn_jax.weights.preprocess import PublishedPreprocess, from_timm
from cnn_jax.weights.trained import load_trained

Maker = Callable[[int | None], nn.Module]  # number of classes, or None for the default → model
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")
_CLASSIFIER = "params/output/kernel"
RUNS = "runs"  # default folder of runs
METADATA = "cnn_jax"  # key of our record in the header of a weights file; see `cnn_jax.weights.export`


@dataclass(frozen=True)
class _Opened:
    """Weights read from a source, before conversion.

    Attributes:
        where: the source, for messages.
        state: arrays by the source's names, or by our paths if `ours`.
        make: builds the model they are for, if known.
        preprocess: the preprocessing they expect, if known.
        ours: whether `state` uses our paths.
    """

    where: str
    state: Mapping[str, np.ndarray]
    make: Maker | None = None
    preprocess: Preprocess | None = None
    ours: bool = False


def load_pretrained(
    source: str | Path,
    *,
    model: str | nn.Module | None = None,
    num_classes: int | None = None,
    classifier: Literal["keep", "replace", "auto"] = "keep",
    seed: int = 0,
) -> tuple[nn.Module, dict[str, Any], Preprocess | None]:
    """Loads a model with weights.

    Args:
        source: a run folder; a weights file (`.safetensors`, `.pth`) with PyTorch's names or ours; a folder with a timm
            model's config.json and model.safetensors; "torchvision/NAME", see `cnn_jax.weights.catalog.TORCHVISION`; or
            "OWNER/NAME" for a timm model on the Hugging Face hub, such as "timm/resnet50.a1_in1k".
        model: a name in `cnn_jax.models.MODELS` or a module; required if the source does not name its model.
        num_classes: default: as many as the weights have.
        classifier: "keep" requires weights for `num_classes` classes; "replace" initialises a new classifier; "auto"
            keeps it if the numbers of classes agree.
        seed: initialises a new classifier.

    Returns:
        The module; its variables, NumPy arrays of float32; the preprocessing that the weights were evaluated with, None
        if unknown.

    Raises:
        UserError: the weights are unavailable or unreadable, belong to another architecture or number of classes, or
            are not finite.
    """
    if classifier not in ("keep", "replace", "auto"):
        raise unknown("classifier", classifier, ("keep", "replace", "auto"))
    if num_classes is None and classifier != "keep" or num_classes is not None and num_classes < 1:
        raise UserError(f"num_classes is {num_classes} with classifier={classifier!r}: it must be 1 or more")
    opened = _open(source)
    make = opened.make if model is None else _maker(model)
    if make is None:
        raise UserError(
            f"the weights {opened.where} do not say which model they are for: pass model=NAME "
            "(python -m cnn_jax models lists the names)"
        )
    network: Any = make(None)
    shape = opened.preprocess.image_shape if opened.preprocess else network.input_shape
    like = _shapes(network, shape)
    naming = None if opened.ours else recognise(network, list(like), opened.state)
    if not hasattr(network, "num_classes"):  # such as an auto-encoder
        arrays = _converted(opened, naming, network, shape, like, [])
        return network, traverse_util.unflatten_dict(arrays, sep="/"), opened.preprocess
    classes = _classes(opened.state, naming)
    if num_classes is None:
        num_classes = network.num_classes if isinstance(model, nn.Module) or classes is None else classes
    if classifier == "auto":
        classifier = "keep" if classes == num_classes else "replace"
    if classifier == "keep" and classes not in (None, num_classes):
        raise UserError(
            f"the weights {opened.where} are for {classes} classes, not {num_classes}: set `init_head` to replace "
            f"(in Python, classifier='replace') to start a new classifier, or use num_classes={classes}"
        )
    if num_classes != network.num_classes:
        network = make(num_classes)
        like = _shapes(network, shape)
    # The classifiers of auxiliary heads are called "output", too.
    head = [path for path in like if classifier == "replace" and "output" in path.split("/")]
    kept = {path: leaf for path, leaf in like.items() if path not in head}
    arrays = _converted(opened, naming, network, shape, kept, head) | _initialised(network, shape, head, seed)
    return network, traverse_util.unflatten_dict(arrays, sep="/"), opened.preprocess


def _classes(state: Mapping[str, np.ndarray], naming: Naming | None) -> int | None:
    """Returns the number of classes of the weights; None if they have no classifier."""
    if naming is None:
        kernel = state.get(_CLASSIFIER)
        return None if kernel is None else kernel.shape[-1]
    kernel = naming.prepare(state).get(torch_name(_CLASSIFIER, naming.names))
    return None if kernel is None else kernel.shape[0]


def _converted(
    opened: _Opened,
    naming: Naming | None,
    network: Any,
    shape: tuple[int, int, int],
    kept: Mapping[str, Any],
    head: Sequence[str],
) -> dict[str, Any]:
    """Converts the weights to the arrays `kept` of the network, which they must match exactly apart from `head`."""
    size = "x".join(map(str, shape))
    classes = f" and {network.num_classes} classes" if hasattr(network, "num_classes") else ""
    wanted = f"weights of {type(network).__name__} for {size} images{classes}"
    if naming is None:
        arrays = {path: array for path, array in opened.state.items() if path not in head}
        check_same_structure(arrays, kept, given=opened.where, wanted=wanted)
        return {path: np.asarray(array, kept[path].dtype) for path, array in arrays.items()}
    replaced = (f"^{re.escape(torch_name(path, naming.names))}$" for path in head)
    variables = from_torch(
        naming.prepare(opened.state),
        traverse_util.unflatten_dict(kept, sep="/"),
        naming.names,
        flattened=flattened_maps(network, shape),
        ignore=(*naming.ignore, *replaced),
        given=opened.where,
        wanted=wanted,
    )
    return _flat(variables)


def _open(source: str | Path) -> _Opened:
    path = Path(source)
    if path.is_dir():
        config = path / CONFIG
        if (path / WEIGHTS).is_file() and not (path / run_folder.WEIGHTS).exists():
            return _open_timm(HubFiles(path / WEIGHTS, read_config(config)), str(source))
        return _open_run(path)
    if path.is_file():
        is_run = path.name == run_folder.WEIGHTS and (path.parent / run_folder.CONFIG).is_file()
        return _open_run(path.parent) if is_run else _open_file(path)
    owner, _, name = str(source).partition("/")
    if owner == "torchvision" and name:
        if name not in TORCHVISION:
            raise unknown("weights of torchvision", name, TORCHVISION)
        entry = TORCHVISION[name]
        state, _ = read_state(torchvision_file(name, entry))
        return _Opened(str(source), state, _factory(entry.architecture), entry.preprocess)
    # OWNER/NAME on the hub, unless it looks like a mistyped path or a run yet to be trained.
    is_path = owner == RUNS or Path(owner).exists() or path.suffix in SUFFIXES
    if _HUB.fullmatch(str(source)) and not is_path:
        return _open_timm(hub_files(str(source)), str(source))
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


def load_run(run: str | Path) -> tuple[Any, dict[str, Any], Preprocess]:
    """Opens a finished run of one network; returns module, variables and preprocessing.

    Raises:
        UserError: the run is not finished, or has several members.
    """
    members = run_folder.read_config(run).train.members
    if members > 1:
        raise UserError(f"{run} is a run of {members} networks: train it again with one member, or name another run")
    trained = load_trained(run)
    return trained.model, trained.variables, trained.preprocess


def _open_run(run: Path) -> _Opened:
    network, variables, preprocess = load_run(run)
    return _Opened(str(run), _flat(variables), _maker(network), preprocess, ours=True)


def _open_timm(files: HubFiles, where: str) -> _Opened:
    architecture = files.config["architecture"]
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    if files.config.get("model_args"):
        raise UserError(
            f"{where} is a {architecture} with model_args {files.config['model_args']}, which are not supported: "
            "choose other weights"
        )
    state, _ = read_state(files.weights)
    return _Opened(where, state, _factory(architecture), from_timm(files.config["pretrained_cfg"], where))


def _open_file(path: Path) -> _Opened:
    state, metadata = read_state(path)
    if all(name.startswith(("params/", "batch_stats/")) for name in state):
        return _Opened(str(path), state, ours=True)
    if record := _record(metadata):
        preprocess = PublishedPreprocess.from_json(json.dumps(record["preprocess"]), path)
        return _Opened(str(path), state, partial(build, record["model"], args=record["model_args"]), preprocess)
    for entry in TORCHVISION.values():
        if entry.file == path.name:
            return _Opened(str(path), state, _factory(entry.architecture), entry.preprocess)
    return _Opened(str(path), state)


def _record(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the record that `cnn_jax.weights.export` wrote to the header; None if the file is not from it."""
    try:
        match json.loads(metadata[METADATA]):
            case {"model": str(), "model_args": [*args], "preprocess": {}} as record:
                return record if all(isinstance(arg, str) for arg in args) else None
    except (KeyError, ValueError):
        pass
    return None


def _maker(model: str | nn.Module) -> Maker:
    if isinstance(model, str):
        return partial(build, model)
    return lambda num_classes: model if num_classes is None else model.clone(num_classes=num_classes)


def _factory(architecture: str) -> Maker:
    factory = ARCHITECTURES[architecture]
    return lambda num_classes: factory() if num_classes is None else factory(num_classes=num_classes)


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return dict(traverse_util.flatten_dict(dict(tree), sep="/"))


def _shapes(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, Any]:
    return _flat(jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)))


def _initialised(
    network: nn.Module, shape: tuple[int, int, int], paths: Sequence[str], seed: int
) -> dict[str, np.ndarray]:
    """Initialises the arrays `paths` of a model. Compiled, so that XLA drops the work for all others."""

    @jax.jit
    def init(key: jax.Array) -> dict[str, jax.Array]:
        leaves = _flat(network.init(key, jnp.zeros((1, *shape)), train=False))
        return {path: leaves[path] for path in paths}

    return {path: np.asarray(array) for path, array in init(jax.random.key(seed)).items()}
