"""Our side of `benchmarks.versus_torch`: the training step of the experiments, compiled with a donated state."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.sides import CHECKED, LEARNING_RATE, MOMENTUM, Batch, Image, Side, fastest
from cnn_jax.config import OptimConfig
from cnn_jax.models import build
from cnn_jax.models.small import Filters, SmallCnn
from cnn_jax.optim.optimizers import Optimizer, make_optimizer
from cnn_jax.tasks import Classification
from cnn_jax.training.state import init_state
from cnn_jax.training.step import make_train_step


def _lenet_like(dtype: Any) -> nn.Module:
    blocks = ((Filters(32, 5, "SAME"),), (Filters(64, 3, "SAME"),))
    return SmallCnn(blocks=blocks, dense=(256,), dtype=dtype)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": partial(build, "lenet5"),
    "lenet_like": _lenet_like,
    "resnet20": partial(build, "resnet20"),
    "resnet18": partial(build, "resnet18"),
    "vgg11": partial(build, "vgg11", args=["dropout=0"]),
    # Blocks start as the identity. With the usual initial weights the gradient of so deep a network has an error of
    # some per cent in float32, in ours as in PyTorch's, and so have the losses of later steps.
    "resnet50": partial(build, "resnet50", args=["zero_init_residual=true"]),
}


def initial_variables(model: nn.Module, image: Image) -> dict[str, Any]:
    """Returns initial weights drawn as in training, as nested dictionaries of NumPy arrays.

    Raises:
        UserError: the model does not take images of this size.
    """
    state = init_state(model, _optimizer(), image, seed=0)
    trees = {"params": state.params, "batch_stats": state.batch_stats}
    return jax.tree.map(np.array, {name: tree for name, tree in trees.items() if tree})


def _optimizer() -> Optimizer:
    args = (f"momentum={MOMENTUM}",)
    config = OptimConfig(optimizer="nesterov", learning_rate=LEARNING_RATE, optimizer_args=args)
    return make_optimizer(config, total_steps=1)


def ours(model: Any, variables: Mapping[str, Any], batch: Batch) -> Side:
    """Compiles our training step and runs the first `CHECKED` steps.

    Args:
        model: a Linen module of `cnn_jax.models`.
        variables: its initial weights.
        batch: the batch to train on.
    """

    optimizer, task = _optimizer(), Classification(tuple(map(str, range(model.num_classes))))
    # The images are fed as they are, without augmentation or normalization.
    step = make_train_step(model, task, optimizer, lambda key, batch, first_index: batch, dict)
    placed = jax.device_put({"image": batch.images, "label": batch.labels})
    state = init_state(model, optimizer, batch.images.shape[1:], 0, variables=jax.tree.map(jnp.array, dict(variables)))
    compiled, seconds, cached = compile_step(step, state, placed)

    def train(steps: int) -> float:
        nonlocal state
        metrics: Any = {}
        for _ in range(steps):
            state, metrics = compiled(state, placed)
        total, count = jax.device_get(metrics["loss"])
        return float(total / count)

    losses = tuple(train(1) for _ in range(CHECKED))
    return Side(train, losses, seconds, cached, partial(_peak_bytes, compiled))


def compile_step(step: Callable[..., Any], state: Any, batch: Any) -> tuple[Any, float, float]:
    """Traces and compiles twice: with an empty compilation cache, then with the program in it.

    Returns:
        The compiled step, which donates the state, and the seconds of each compilation.
    """

    def timed() -> tuple[Any, float]:
        jax.clear_caches()
        start = time.perf_counter()
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        return compiled, time.perf_counter() - start

    with _empty_cache():
        compiled, cold = timed()
        _, warm = timed()
    return compiled, cold, warm


@contextlib.contextmanager
def _empty_cache() -> Iterator[None]:
    """Context in which JAX's compilation cache is a new, empty folder that takes every program."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "jax_enable_compilation_cache": True,
            "jax_compilation_cache_dir": folder,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        before = {name: getattr(jax.config, name) for name in settings}
        try:
            for name, value in settings.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()  # JAX otherwise keeps using the folder of the first compilation
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def _peak_bytes(compiled: Any) -> int:
    counted = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in counted:
        return counted["peak_bytes_in_use"]
    size = compiled.memory_analysis()
    whole = size.argument_size_in_bytes + size.output_size_in_bytes + size.temp_size_in_bytes
    return whole - size.alias_size_in_bytes  # donated buffers count as both argument and result


def matmul(side: int, dtype: str) -> float:
    """Measures the FLOP/s of JAX's product of two square matrices."""
    x = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)

    def run(times: int) -> None:
        y = x
        for _ in range(times):
            y = product(x, x)
        y.block_until_ready()

    return 2 * side**3 * fastest(run)
