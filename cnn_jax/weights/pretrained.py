"""Loads weights from any source into a ready-to-use model."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from cnn_jax.data.preprocess import Preprocess
from cnn_jax.errors import UserError, unknown
from cnn_jax.models.named import variable_shapes
from cnn_jax.storage.weights_file import check_same_structure
from cnn_jax.weights.convert import flattened_maps, from_torch, torch_name
from cnn_jax.weights.files import Which
from cnn_jax.weights.naming import Naming, recognise
from cnn_jax.weights.sources import Opened, flat, maker, open_weights
from cnn_jax.weights.wrappers import is_average, prefixes

_CLASSIFIER = "params/output/kernel"


@dataclass(frozen=True)
class Pretrained:
    """A model with weights.

    Attributes:
        model: a Linen module.
        variables: its variables, NumPy arrays of float32.
        preprocess: the preprocessing that the weights were evaluated with; None if unknown.
        weights: which weights were taken, in words, if the source says; else empty.
        classifier: where the classifier comes from, in words; empty for a model without one.
    """

    model: nn.Module
    variables: dict[str, Any]
    preprocess: Preprocess | None
    weights: str
    classifier: str


def load_pretrained(
    source: str | Path,
    *,
    model: str | nn.Module | None = None,
    num_classes: int | None = None,
    classifier: Literal["keep", "replace", "auto"] = "keep",
    weights: Which = "auto",
    seed: int = 0,
) -> tuple[nn.Module, dict[str, Any], Preprocess | None]:
    """Loads a model with weights.

    If the source holds the weights and their moving average, says on stderr which were taken.

    Args:
        source: a run folder; a weights file (`.safetensors`, `.pth`) with PyTorch's names or ours; a folder with a timm
            model's config.json and weights; "torchvision/NAME", see `cnn_jax.weights.catalog.TORCHVISION`; or
            "OWNER/NAME" for a timm model on the Hugging Face hub, such as "timm/resnet50.a1_in1k".
        model: a name in `cnn_jax.models.MODELS` or a module; required if the source does not name its model.
        num_classes: default: as many as the weights have.
        classifier: "keep" requires weights for `num_classes` classes; "replace" initialises a new classifier; "auto"
            keeps it if the numbers of classes agree.
        weights: of a file that holds both: "plain", or "ema", their moving average; "auto" takes the average.
        seed: initialises a new classifier.

    Returns:
        The module; its variables, NumPy arrays of float32; the preprocessing that the weights were evaluated with, None
        if unknown.

    Raises:
        UserError: the weights are unavailable or unreadable, belong to another architecture or number of classes, or
            are not finite.
    """
    found = open_pretrained(
        source, model=model, num_classes=num_classes, classifier=classifier, weights=weights, seed=seed
    )
    if found.weights:
        print(f"{source}: {found.weights}", file=sys.stderr)
    return found.model, found.variables, found.preprocess


def open_pretrained(
    source: str | Path,
    *,
    model: str | nn.Module | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    classifier: Literal["keep", "replace", "auto"] = "keep",
    weights: Which = "auto",
    seed: int = 0,
    image_shape: tuple[int, int, int] | None = None,
) -> Pretrained:
    """Loads a model with weights; see `load_pretrained`, whose arguments it takes.

    Args:
        image_shape: that of the images, for weights of this package whose file does not say for which they are;
            default: the model's published one.
        class_names: names of the `num_classes` classes. If the source names its classes, too, a classifier for the same
            ones in another order is put in this order, and "auto" replaces one for other classes.
    """
    for name, value, known in (
        ("classifier", classifier, ("keep", "replace", "auto")),
        ("weights", weights, ("auto", "ema", "plain")),
    ):
        if value not in known:
            raise unknown(name, value, known)
    if num_classes is None and classifier != "keep" or num_classes is not None and num_classes < 1:
        raise UserError(f"num_classes is {num_classes} with classifier={classifier!r}: it must be 1 or more")
    opened = open_weights(source, weights)
    make = opened.make if model is None else maker(model)
    if make is None:
        raise UserError(
            f"the weights {opened.where} do not say which model they are for: pass model=NAME "
            "(python -m cnn_jax models lists the names)"
        )
    network: Any = make(None)
    shape = opened.preprocess.image_shape if opened.preprocess else _shape_of(opened, network, image_shape)
    like = _shapes(network, shape)
    naming = None if opened.ours else recognise(network, list(like), opened.state)
    if naming is not None:
        opened = _inside(opened, naming, list(like), weights)
    _check_kind(opened, weights)
    if not hasattr(network, "num_classes"):  # such as an auto-encoder
        arrays = _converted(opened, naming, network, shape, like, [])
        return _pretrained(opened, network, arrays, "")
    count = _classes(opened.state, naming)
    if num_classes is None:
        num_classes = network.num_classes if isinstance(model, nn.Module) or count is None else count
    head = choose_head(opened.classes, class_names, count, num_classes, classifier)
    if head.kept and count not in (None, num_classes):
        raise UserError(
            f"the weights {opened.where} are for {count} classes, not {num_classes}: set `init_head` to replace "
            f"(in Python, classifier='replace') to start a new classifier, or use num_classes={count}"
        )
    if num_classes != network.num_classes:
        network = make(num_classes)
        like = _shapes(network, shape)
    # The classifiers of auxiliary heads are called "output", too.
    classifiers = [path for path in like if "output" in path.split("/")]
    new = [] if head.kept else classifiers
    kept = {path: leaf for path, leaf in like.items() if path not in new}
    _check_side_heads(opened, naming, network, kept)
    arrays = _converted(opened, naming, network, shape, kept, new) | _initialised(network, shape, new, seed)
    if head.order is not None:
        arrays |= {path: arrays[path][..., head.order] for path in classifiers}
    return _pretrained(opened, network, arrays, head.origin)


def _shape_of(opened: Opened, network: Any, image_shape: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Returns `image_shape`, in grey or colour, if it is what weights of this package are for, else the usual shape."""
    if opened.ours and image_shape is not None and image_shape[2] in (1, 3):
        height, width, channels = image_shape
        for shape in (image_shape, (height, width, 4 - channels)):
            body = {path: leaf for path, leaf in _shapes(network, shape).items() if "output" not in path.split("/")}
            if all(path in opened.state and np.shape(opened.state[path]) == body[path].shape for path in body):
                return shape
    return network.input_shape


def _pretrained(opened: Opened, network: nn.Module, arrays: Mapping[str, Any], classifier: str) -> Pretrained:
    kinds = {None: "", True: "the moving average of the weights", False: "the weights without averaging"}
    variables = traverse_util.unflatten_dict(arrays, sep="/")
    return Pretrained(network, variables, opened.preprocess, kinds[opened.ema], classifier)


def _inside(opened: Opened, naming: Naming, paths: Sequence[str], which: Which) -> Opened:
    """Finds the network in a larger one, such as Lightning's `model.`, and drops what is beside it.

    Raises:
        UserError: several networks fit.
    """
    state = naming.prepare(opened.state)
    found = prefixes(state, [torch_name(path, naming.names) for path in paths])
    averages = [prefix for prefix in found if is_average(prefix)]
    others = [prefix for prefix in found if prefix not in averages]
    average = not others or bool(averages) and which != "plain"
    fitting = averages if average else others
    if "" in fitting:
        return replace(opened, state=state)
    if len(fitting) > 1:
        raise UserError(
            f"{opened.where} holds several networks that fit, under {', '.join(fitting)}: save the state dict of one"
        )
    inside = {name.removeprefix(fitting[0]): array for name, array in state.items() if name.startswith(fitting[0])}
    return replace(opened, state=inside, ema=average if averages else opened.ema)


def _check_kind(opened: Opened, which: Which) -> None:
    """Checks that the weights are a moving average, or not, as was asked for."""
    if which == "ema" and not opened.ema:
        wrong, other = "no moving average of the weights", "plain"
    elif which == "plain" and opened.ema:
        wrong, other = "only a moving average of the weights", "ema"
    else:
        return
    raise UserError(f"{opened.where} has {wrong}: set `init_weights` to auto or {other} (in Python, weights='auto')")


class Head(NamedTuple):
    """Where the classifier comes from.

    Attributes:
        kept: whether it is that of the weights.
        order: its columns in the order of the classes; None if they are.
        origin: this in words.
    """

    kept: bool
    order: list[int] | None
    origin: str


def choose_head(
    theirs: Sequence[str], ours: Sequence[str], count: int | None, num_classes: int | None, classifier: str
) -> Head:
    """Decides whether to keep a classifier.

    Args:
        theirs, ours: class names of the weights and of the data; empty if unknown.
        count: number of classes of the weights; None if they have no classifier.
        num_classes: number of classes of the data.
        classifier: see `load_pretrained`.
    """
    named = bool(ours) and len(theirs) == len(set(theirs)) == count
    same = named and sorted(theirs) == sorted(ours)
    if classifier == "replace":
        return Head(False, None, "new classifier")
    if classifier == "auto" and count is None:
        return Head(False, None, "new classifier: the weights have none")
    if classifier == "auto" and count != num_classes:
        return Head(False, None, f"new classifier: the weights are for {count} classes")
    if classifier == "auto" and named and not same:
        return Head(False, None, f"new classifier: the weights are for {_listed(theirs)}")
    if not named:
        return Head(True, None, "classifier kept; the weights do not name its classes")
    if not same:
        return Head(True, None, f"classifier kept, though it is for {_listed(theirs)}")
    if list(theirs) == list(ours):
        return Head(True, None, "classifier kept")
    return Head(True, [theirs.index(name) for name in ours], "classifier kept, its classes put in the data's order")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_side_heads(opened: Opened, naming: Naming | None, network: Any, wanted: Mapping[str, Any]) -> None:
    """Rejects weights without auxiliary heads, such as timm's Inception-v3, for a model that has them."""
    heads = [path for path in wanted if path.split("/")[1].startswith("aux")]
    have = opened.state if naming is None else naming.prepare(opened.state)
    names = heads if naming is None else [torch_name(path, naming.names) for path in heads]
    if getattr(network, "aux_heads", False) and not any(name in have for name in names):
        raise UserError(
            f"the weights {opened.where} have no side heads: set `model_args` to aux_heads=false (in Python, "
            "aux_heads=False)"
        )


def _classes(state: Mapping[str, np.ndarray], naming: Naming | None) -> int | None:
    """Returns the number of classes of the weights; None if they have no classifier."""
    if naming is None:
        kernel = state.get(_CLASSIFIER)
        return None if kernel is None else kernel.shape[-1]
    kernel = naming.prepare(state).get(torch_name(_CLASSIFIER, naming.names))
    return None if kernel is None else kernel.shape[0]


def _converted(
    opened: Opened,
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
    return flat(variables)


def _shapes(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, Any]:
    return flat(variable_shapes(network, shape))


def _initialised(
    network: nn.Module, shape: tuple[int, int, int], paths: Sequence[str], seed: int
) -> dict[str, np.ndarray]:
    """Initialises the arrays `paths` of a model. Compiled, so that XLA drops the work for all others."""

    @jax.jit
    def init(key: jax.Array) -> dict[str, jax.Array]:
        leaves = flat(network.init(key, jnp.zeros((1, *shape)), train=False))
        return {path: leaves[path] for path in paths}

    return {path: np.asarray(array) for path, array in init(jax.random.key(seed)).items()}
