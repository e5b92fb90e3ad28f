"""Reference networks in PyTorch: with the same random weights, ours must compute the same values.

A parity test lists its networks in `CASES` and asserts that `compare(case).worst() < TOLERANCE`;
`python -m benchmarks.parity` tabulates them all.
"""

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.models import build, stages
from cnn_jax.weights.convert import Names, flattened_maps, from_torch

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """One of our networks and its PyTorch counterpart.

    Attributes:
        model: our network, as a name for `build` or a module.
        net: makes PyTorch's network, with any weights.
        names: maps our paths to PyTorch's names.
        stages: PyTorch module whose output is each of our stages; "MODULE:input" means the module's input. Must have
            all stages that our network records.
        image: (height, width, channels) of the random images; the batch size is 2.
        ignore: patterns of PyTorch's names to ignore, as in `from_torch`.
    """

    model: str | nn.Module
    net: Callable[[], Any]
    names: Names
    stages: Mapping[str, str]
    image: tuple[int, int, int] = (64, 64, 3)
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class Errors:
    """Largest absolute differences from PyTorch, each divided by PyTorch's largest absolute value."""

    logits: float
    stages: dict[str, float]

    def worst(self) -> float:
        return max(self.logits, *self.stages.values())


def torchvision() -> Any:
    """Imports torchvision, if need be without its compiled operations, which the models do not need.

    Raises:
        unittest.SkipTest: PyTorch or torchvision is absent (pytest skips the test).
    """
    try:
        torch: Any = importlib.import_module("torch")
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise SkipTest(f"needs {error.name}") from error
    except RuntimeError:  # "operator torchvision::nms does not exist": built for CUDA or another PyTorch
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)  # freeing a library removes its operators
        return importlib.import_module("torchvision")


_LIBRARIES: list[Any] = []


def randomise(net: Any, seed: int = 0) -> Any:
    """Draws every weight and statistic of a PyTorch network at random, so that any mix-up shows.

    Kernels are He-normal; scales and variances are between 0.5 and 1.5; biases and means are normal with standard
    deviation 0.1.
    """
    torch: Any = importlib.import_module("torch")
    numbers = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) > 1 and shape[1:] != (1,) * (len(shape) - 1):
            return numbers.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        if name.endswith(("weight", "var", "layer_scale", "gamma")):
            return numbers.uniform(0.5, 1.5, size=shape)
        return numbers.normal(size=shape) * 0.1

    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(draw(name, tuple(tensor.shape)).astype(np.float32)))
    return net.eval()


def numpy_state(net: Any) -> dict[str, np.ndarray]:
    """The state dict of a PyTorch network as arrays."""
    return {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}


def shapes(model: nn.Module, image: tuple[int, int, int]) -> Any:
    """Shapes of the variables of one of our models."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image)), train=False))


def compare(case: Case, seed: int = 0) -> Errors:
    """Converts random PyTorch weights, runs both networks on the same two random images and compares every stage."""
    model = build(case.model) if isinstance(case.model, str) else case.model
    net = randomise(case.net(), seed)
    variables = from_torch(
        numpy_state(net),
        shapes(model, case.image),
        case.names,
        flattened=flattened_maps(model, case.image),
        ignore=case.ignore,
    )
    x = np.random.default_rng(seed + 1).normal(size=(2, *case.image)).astype(np.float32)
    logits, activations = _evaluate(net, x, set(case.stages.values()))
    ours, seen = jax.jit(lambda v, x: stages(model, v, x))(variables, x)
    check_stages(case.stages, seen)
    return Errors(
        logits=_relative(ours, logits),
        stages={stage: _relative(seen[stage], activations[module]) for stage, module in case.stages.items()},
    )


def check_stages(compared: Iterable[str], recorded: Iterable[str]) -> None:
    """Asserts that the compared stages are exactly those that our network records."""
    left_out, absent = set(recorded) - set(compared), set(compared) - set(recorded)
    assert not left_out, f"not compared: {sorted(left_out)}"
    assert not absent, f"not recorded: {sorted(absent)}"


def _evaluate(net: Any, x_BxHxWxC: np.ndarray, modules: set[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns PyTorch's logits and the named modules' outputs (or inputs), channels last."""
    torch: Any = importlib.import_module("torch")
    seen: dict[str, np.ndarray] = {}

    def keep(name: str, tensor: Any) -> None:
        # Copied at once, since a later activation may work in place; a module called twice keeps its first output.
        seen.setdefault(name, np.array(tensor.detach().permute(0, *range(2, tensor.ndim), 1).numpy()))

    for name in modules:
        module = net.get_submodule(name.removesuffix(":input"))
        if name.endswith(":input"):
            module.register_forward_pre_hook(lambda _, args, name=name: keep(name, args[0]))
        else:
            module.register_forward_hook(lambda _, args, out, name=name: keep(name, out))
    with torch.no_grad():
        logits = net(torch.from_numpy(x_BxHxWxC).permute(0, 3, 1, 2))
    return logits.numpy(), seen


def _relative(ours: Any, theirs: np.ndarray) -> float:
    ours = np.asarray(ours)
    if ours.shape != theirs.shape:
        assert ours.size == theirs.size, f"ours is {ours.shape}, PyTorch's {theirs.shape}"
        theirs = theirs.reshape(ours.shape)  # (B, 1, 1, C) to (B, C)
    scale = float(np.abs(theirs).max())
    assert 0 < scale < np.inf
    return float(np.abs(ours - theirs).max()) / scale
