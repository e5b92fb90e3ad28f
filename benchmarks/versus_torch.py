"""A training step of ours against PyTorch's, on this machine.

    python -m benchmarks.versus_torch --model resnet20 --device cpu --output results/speed.csv

Both train the same network from the same weights on the same batch, float32 images, normalized, that lie on the
device; cross-entropy, SGD with Nesterov momentum. Ours is the step of every experiment (`cnn_jax.training.step`), with
its metrics, compiled with a donated state. PyTorch's has channels_last tensors, a thread a core and the fused
optimizer; on a GPU also autocast to bfloat16 and torch.compile(max-autotune), where ours computes in bfloat16, too.
Dropout, of which no two programs draw the same, is 0.

The losses of three steps must agree, or nothing is timed. Then blocks of either are timed in turns, with a pause
before each, in which the threads of the other go to sleep. What share of the processor is busy then, others take, and
the ratio flatters us: PyTorch's threads wait for each other without sleep, and lose several times more than ours to
anything that runs beside them. Measure on an idle machine. A ratio above 1 says how many times more images a second
ours trains on. FLOPs are three times those of the forward pass; the ceiling is a large product of matrices of the same
type, the faster of the two libraries'. Peak memory is what the allocator counted on a GPU; on a CPU what our
compiled step needs (PyTorch does not say). Compile time is that of our step without and with its program in the
cache, and of PyTorch's first step. Needs jax, flax, optax, numpy and torch.
"""

import argparse
import contextlib
import importlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.speed import Figure, figure, record
from cnn_jax.cli import ArgumentParser, guard
from cnn_jax.errors import TrainingStopped, UserError
from cnn_jax.losses import cross_entropy
from cnn_jax.models import build
from cnn_jax.models.small import Filters, SmallCnn
from cnn_jax.models.summary import count_flops
from cnn_jax.optimizers import make_optimizer
from cnn_jax.training.runtime import keep_memory
from cnn_jax.training.state import init_state
from cnn_jax.training.step import make_train_step

Image = tuple[int, int, int]
Array = np.ndarray

LEARNING_RATE, MOMENTUM = 1e-3, 0.9  # a large rate would blow the last digit, in which the two differ, up
CHECKED = 3  # steps whose losses must agree
BUSY = 0.05  # share of the processor that others may take before a warning
SETTLE, PAUSE = 0.05, 0.2  # seconds before a block: until all threads sleep, and in which others are watched
TOLERANCES = {"float32": (1e-4, 1e-3), "bfloat16": (2e-2, 5e-2)}  # of the first step, of the others
MATMUL = {"cpu": 2048, "gpu": 4096}  # side of the matrices


def _lenet_like(dtype: Any) -> nn.Module:
    blocks = ((Filters(32, 5, "SAME"),), (Filters(64, 3, "SAME"),))
    return SmallCnn(blocks=blocks, dense=(256,), dtype=dtype)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": partial(build, "lenet5"),
    "lenet_like": _lenet_like,
    "resnet20": partial(build, "resnet20"),
    "resnet18": partial(build, "resnet18"),
    "vgg11": partial(build, "vgg11", args=["dropout=0"]),
    # Blocks begin as the identity: from the usual weights, the gradient of so deep a network is uncertain by some per
    # cent in float32, ours and PyTorch's, and the losses of later steps with it.
    "resnet50": partial(build, "resnet50", args=["zero_init_residual=true"]),
}


@dataclass(frozen=True)
class Batch:
    """What both train on: images float32 (B, H, W, C), of mean 0 and variance 1; labels int32 (B,)."""

    images: Array
    labels: Array


@dataclass(frozen=True)
class Side:
    """One of the two, in training.

    Attributes:
        train: runs so many steps, waits for them and returns the loss of the last.
        losses: of the first steps.
        compile_seconds: until the first step can run (PyTorch's: until it has run).
        cached_seconds: the same with the program in the cache; None where there is no such thing.
        peak_bytes: of device memory so far; None where it is not known.
    """

    train: Callable[[int], float]
    losses: tuple[float, ...]
    compile_seconds: float
    cached_seconds: float | None
    peak_bytes: Callable[[], int | None]


@dataclass(frozen=True)
class Result:
    """What was measured; rates are of the blocks, in images/s.

    Attributes:
        ours, torch: both sides.
        ours_rates, torch_rates: a number a block, in the same order.
        others: share of the processor's time that others took in the pause before each block, where it is known.
        flops: of one image in training.
        ceiling: FLOP/s of a product of matrices.
    """

    ours: Side
    torch: Side
    ours_rates: list[float]
    torch_rates: list[float]
    others: list[float]
    flops: int
    ceiling: float

    @property
    def ratios(self) -> list[float]:
        """Ours over PyTorch's, a number a pair of blocks."""
        return [ours / torch for ours, torch in zip(self.ours_rates, self.torch_rates, strict=True)]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and records one model.

    Raises:
        UserError: PyTorch is absent, there is no such device, or a number is out of range.
        TrainingStopped: the two do not compute the same.
    """
    arguments = _parse(argv)
    device, name = arguments.device, arguments.model
    keep_memory()  # as every run of ours does; PyTorch's tensors profit, too
    _choose(device)
    torch = import_torch(device)
    from benchmarks import torch_networks

    compiled = device == "gpu" if arguments.compile is None else arguments.compile
    if compiled:
        _check_compiler(device)
    dtype = "bfloat16" if device == "gpu" else "float32"
    model: Any = MODELS[name](dtype=jnp.dtype(dtype))
    height, width, channels = model.input_shape
    if arguments.image_size is not None:
        height = width = arguments.image_size
    image = (height, width, channels)
    size = arguments.batch_size or _usual_batch(device, image)
    batch = make_batch(size, image, model.num_classes)
    variables = initial_variables(model, image)
    how = "torch.compile" if compiled else "eager"
    case = f"{name} batch {size}"
    case += f" of {height}x{width}" if image != model.input_shape else ""
    case += f" {how}" if compiled != (device == "gpu") else ""
    print(
        f"{case}: {height}x{width}x{channels} {dtype} on {device}, jax {jax.__version__}, "
        f"torch {torch.__version__} {how}, {torch.get_num_threads()} threads",
        flush=True,
    )
    mine = ours(model, variables, batch)
    net = torch_networks.NETWORKS[name](image, model.num_classes)
    other = theirs(net, variables, batch, device, dtype, compiled)
    check_losses(mine.losses, other.losses, TOLERANCES[dtype])
    ceiling = max(matmul_ours(MATMUL[device], dtype), matmul_torch(MATMUL[device], dtype, device))
    timed = alternate(mine.train, other.train, size, arguments.blocks, arguments.seconds)
    result = Result(mine, other, *timed, 3 * count_flops(model, image), ceiling)
    print(describe(result))
    record(arguments.output, "versus_torch", figures(case, result), ("torch",))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m benchmarks.versus_torch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, choices=MODELS)
    parser.add_argument("--device", required=True, choices=("cpu", "gpu"))
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="default 128; 8 large images on a CPU, 256 of any on a GPU"
    )
    parser.add_argument("--image-size", type=int, metavar="N", help="height and width (default: the model's own)")
    parser.add_argument("--blocks", type=int, default=7, help="pairs of blocks (default 7)")
    parser.add_argument("--seconds", type=float, default=3.0, help="aimed length of a block (default 3)")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="torch.compile (default: on a GPU only)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="CSV to add the figures to")
    arguments = parser.parse_args(argv)
    # Batch normalisation of 1x1 maps needs two images.
    for flag, value, least in (
        ("--batch-size", arguments.batch_size, 2),
        ("--image-size", arguments.image_size, 1),
        ("--blocks", arguments.blocks, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"given {flag} {value}; expected at least {least}; change it")
    if not 0 < arguments.seconds < float("inf"):
        raise UserError(f"given --seconds {arguments.seconds}; expected more than 0; change it")
    return arguments


def _choose(device: str) -> None:
    """Makes JAX use the device.

    Raises:
        UserError: JAX finds no GPU.
    """
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch wants some of the memory, too
    try:
        found = jax.default_backend()
    except RuntimeError as error:  # JAX_PLATFORMS names one that is not there
        found = " ".join(str(error).split())[:160]
    if found != "gpu":
        raise UserError(
            f"given --device gpu; JAX found {found}; expected a GPU; install its build "
            "(pip install -e '.[cuda13]' or '.[cuda12]') or give --device cpu"
        )


def import_torch(device: str) -> Any:
    """Imports PyTorch and lets it use what there is: every core, and on a GPU the fastest algorithms.

    Raises:
        UserError: it is not installed, or finds no GPU.
    """
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError("found no PyTorch; expected it, to compare with; pip install torch") from None
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if device == "gpu":
        if not torch.cuda.is_available():
            raise UserError(
                f"given --device gpu; PyTorch {torch.__version__} found none; expected a build for this GPU; "
                "see https://pytorch.org/get-started or give --device cpu"
            )
        torch.backends.cudnn.benchmark = True
    return torch


def _check_compiler(device: str) -> None:
    """Refuses torch.compile where it would fail for want of a compiler: C++ on a CPU, C (Triton's) on a GPU.

    Raises:
        UserError: there is none.
    """
    variable, usual = ("CXX", ("g++",)) if device == "cpu" else ("CC", ("gcc", "clang", "cc"))
    wanted = (os.environ[variable],) if variable in os.environ else usual
    if not any(map(shutil.which, wanted)):
        raise UserError(
            f"given torch.compile; found no compiler ({', '.join(wanted)}); install one or give --no-compile"
        )


def _usual_batch(device: str, image: Image) -> int:
    if device == "gpu":
        return 256
    return 128 if image[0] * image[1] < 64 * 64 else 8


def make_batch(size: int, image: Image, classes: int) -> Batch:
    """Random images and labels, always the same."""
    numbers = np.random.default_rng(0)
    images = numbers.standard_normal((size, *image), dtype=np.float32)
    return Batch(images, numbers.integers(0, classes, size, dtype=np.int32))


def initial_variables(model: nn.Module, image: Image) -> dict[str, Any]:
    """Draws weights as training does; nested dictionaries of NumPy arrays.

    Raises:
        UserError: the model does not take images of this size.
    """
    state = init_state(model, _optimizer(), image, seed=0)
    trees = {"params": state.params, "batch_stats": state.batch_stats}
    return jax.tree.map(np.array, {name: tree for name, tree in trees.items() if tree})


def _optimizer() -> optax.GradientTransformation:
    return make_optimizer("nesterov", learning_rate=LEARNING_RATE, args=[f"momentum={MOMENTUM}"], total_steps=1).tx


def ours(model: Any, variables: Mapping[str, Any], batch: Batch) -> Side:
    """Compiles our step and runs the first ones.

    Args:
        model: a Linen module of `cnn_jax.models`.
        variables: its weights to start from.
        batch: to train on.
    """

    def targets(key: jax.Array, images: jax.Array, labels: jax.Array, first_index: Any) -> Any:
        return images, jax.nn.one_hot(labels, model.num_classes, dtype=jnp.float32)

    optimizer = _optimizer()
    step = make_train_step(model, optimizer, cross_entropy, targets, lambda images: images, seed=0)
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
    """Traces and compiles twice, with an empty cache of programs and with one that holds the program.

    Returns:
        The compiled step, which donates the state, and the seconds of either.
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
    """Within it, JAX keeps every compiled program in a folder that holds none yet."""
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
            compilation_cache.reset_cache()  # else the folder of the first program that was compiled stays
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
    return whole - size.alias_size_in_bytes  # what is donated is argument and result in one


def theirs(net: Any, variables: Mapping[str, Any], batch: Batch, device: str, dtype: str, compiled: bool) -> Side:
    """Gives PyTorch's network our weights and runs the first steps.

    Args:
        net: the same network of `benchmarks.torch_networks`, on the CPU.
        variables: our weights to start from.
        batch: to train on.
        device: "cpu" or "gpu".
        dtype: "float32", or "bfloat16" for autocast to it.
        compiled: with torch.compile.
    """
    torch: Any = importlib.import_module("torch")
    gpu = device == "gpu"
    place = "cuda" if gpu else "cpu"
    net.load_state_dict({path: torch.from_numpy(array) for path, array in torch_weights(variables).items()})
    net = net.to(place, memory_format=torch.channels_last).train()
    images = torch.from_numpy(batch.images).permute(0, 3, 1, 2).to(place)  # stays channels last
    labels = torch.from_numpy(batch.labels).long().to(place)
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE, MOMENTUM, nesterov=True, fused=True)

    def loss_of(images: Any, labels: Any) -> Any:
        with torch.autocast(place, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = net(images)
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    forward = torch.compile(loss_of, mode="max-autotune" if gpu else "default") if compiled else loss_of

    def train(steps: int) -> float:
        loss: Any = None
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = forward(images, labels)
            loss.backward()
            optimizer.step()
        return loss.detach().item()  # waits for the device

    def peak() -> int | None:
        return torch.cuda.max_memory_allocated() if gpu else None

    start = time.perf_counter()
    first = train(1)
    seconds = time.perf_counter() - start
    losses = (first, *(train(1) for _ in range(CHECKED - 1)))
    if gpu:
        torch.cuda.reset_peak_memory_stats()  # what finding the fastest algorithms took does not count
    return Side(train, losses, seconds, None, peak)


_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_weights(variables: Mapping[str, Any]) -> dict[str, Array]:
    """Our variables as a state dict of `benchmarks.torch_networks`, whose layers have our names.

    >>> kernel = np.zeros((5, 5, 1, 6), np.float32)
    >>> {name: array.shape for name, array in torch_weights({"params": {"conv1": {"kernel": kernel}}}).items()}
    {'conv1.weight': (6, 1, 5, 5)}
    """
    state = {}
    leaves: dict[Any, Any] = traverse_util.flatten_dict(dict(variables))
    for path, array in leaves.items():
        *modules, leaf = path[1:]  # without the name of the collection
        if leaf == "kernel":
            *spatial, inputs, outputs = range(array.ndim)
            array = array.transpose(outputs, inputs, *spatial)
        state[".".join((*modules, _LEAVES[leaf]))] = np.array(array)
    return state


def check_losses(ours: Sequence[float], torch: Sequence[float], tolerances: tuple[float, float]) -> None:
    """Prints the losses of the first steps of both sides.

    Args:
        ours, torch: a loss a step.
        tolerances: greatest difference of the first step, which sees the same weights, and of the others, as shares
            of the first loss.

    Raises:
        TrainingStopped: they differ by more, or are not finite.
    """
    show = lambda losses: ", ".join(f"{loss:.6g}" for loss in losses)  # noqa: E731
    print(f"losses of the first steps: ours {show(ours)}; torch {show(torch)}", flush=True)
    allowed = (tolerances[0], *[tolerances[1]] * (len(ours) - 1))
    for step, (mine, other, tolerance) in enumerate(zip(ours, torch, allowed, strict=True), start=1):
        if not abs(mine - other) <= tolerance * abs(torch[0]):  # false of NaN, too
            raise TrainingStopped(
                f"the losses of step {step} differ: ours {mine:.6g}, torch {other:.6g}, more than {tolerance:g} of the "
                "first; not the same computation, so nothing is timed",
                code=1,
            )


def matmul_ours(side: int, dtype: str) -> float:
    """FLOP/s of JAX's product of two square matrices."""
    x = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)

    def run(times: int) -> None:
        y = x
        for _ in range(times):
            y = product(x, x)
        y.block_until_ready()

    return 2 * side**3 * _fastest(run)


def matmul_torch(side: int, dtype: str, device: str) -> float:
    """FLOP/s of PyTorch's product of two square matrices."""
    torch: Any = importlib.import_module("torch")
    x = torch.randn(side, side, device="cuda" if device == "gpu" else "cpu", dtype=getattr(torch, dtype))

    def run(times: int) -> None:
        y = x
        for _ in range(times):
            y = x @ x
        y[0, 0].item()  # waits

    return 2 * side**3 * _fastest(run)


def _fastest(run: Callable[[int], object], seconds: float = 0.2, trials: int = 5) -> float:
    """Calls a second, the most of some trials of about so many seconds."""
    pause()
    times = _repeats(run, seconds)
    return max(times / _seconds(run, times) for _ in range(trials))


def _seconds(run: Callable[[int], object], times: int) -> float:
    start = time.perf_counter()
    run(times)
    return time.perf_counter() - start


def _repeats(run: Callable[[int], object], seconds: float) -> int:
    """How often it can run in about so many seconds, at least once; leaves it warm."""
    run(1)
    times = max(1, round(seconds / _seconds(run, 1)))
    return max(1, round(seconds * times / _seconds(run, times)))


def alternate(
    ours: Callable[[int], float], torch: Callable[[int], float], batch_size: int, blocks: int, seconds: float
) -> tuple[list[float], list[float], list[float]]:
    """Times blocks of about so many seconds in turns, each pair the other way round than the one before.

    Returns:
        Images a second of each block of ours, and of PyTorch's; the shares of the processor that others took before.
    """
    sides = (ours, torch)
    steps = [_repeats(train, seconds) for train in sides]
    rates: tuple[list[float], list[float]] = ([], [])
    others: list[float | None] = []
    for block in range(blocks):
        for side in (0, 1) if block % 2 == 0 else (1, 0):
            others.append(pause())
            rates[side].append(batch_size * steps[side] / _seconds(sides[side], steps[side]))
    return *rates, [share for share in others if share is not None]


def pause() -> float | None:
    """Sleeps until threads that wait actively have given up.

    Returns:
        Share of the processor's time, of all cores, that others took meanwhile; None where the system does not say.
    """
    time.sleep(SETTLE)
    before = _processor_ticks()
    time.sleep(PAUSE)
    after = _processor_ticks()
    if before is None or after is None or after[0] == before[0]:
        return None
    return 1 - (after[1] - before[1]) / (after[0] - before[0])


def _processor_ticks() -> tuple[int, int] | None:
    """All and idle, of all cores since the start; Linux only."""
    try:
        ticks = [int(number) for number in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]
    except OSError:
        return None
    return sum(ticks[:8]), ticks[3] + ticks[4]  # guests' are in users'; waiting for a disk is idle, too


def describe(result: Result) -> str:
    """A table of both sides, a warning if the machine was busy, and as the last line the ratio."""
    rates = [statistics.median(rates) for rates in (result.ours_rates, result.torch_rates)]
    speeds = [rate * result.flops for rate in rates]
    memory = [_mebibytes(side) for side in (result.ours, result.torch)]
    number = lambda value: "n/a" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"  # noqa: E731
    rows = [
        ("", "ours", "torch"),
        ("images/s", *map(number, rates)),
        ("GFLOP/s", *(number(speed / 1e9) for speed in speeds)),
        (f"% of matmul's {number(result.ceiling / 1e9)}", *(number(100 * s / result.ceiling) for s in speeds)),
        ("peak memory, MiB", *map(number, memory)),
        ("compile or first step, s", number(result.ours.compile_seconds), number(result.torch.compile_seconds)),
        ("the same, cached, s", number(result.ours.cached_seconds), number(result.torch.cached_seconds)),
    ]
    if result.others:
        rows.append(("busy with others, %", number(100 * statistics.median(result.others)), ""))
    lines = [f"{name:<28}{one:>12}{other:>12}" for name, one, other in rows]
    if result.others and max(result.others) > BUSY:
        lines.append(
            "warning: others used the processor meanwhile, which slows PyTorch down more than us; measure anew"
        )
    ratios = result.ratios
    return "\n".join([*lines, f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"])


def figures(case: str, result: Result) -> list[Figure]:
    """The numbers for the table of speeds."""
    found = [figure(case, "ours / torch", result.ratios, "x")]
    for name, side, rates in (
        ("ours", result.ours, result.ours_rates),
        ("torch", result.torch, result.torch_rates),
    ):
        speeds = [rate * result.flops for rate in rates]
        found += [
            figure(case, name, rates, "images/s"),
            figure(case, f"{name} FLOPs", [speed / 1e9 for speed in speeds], "GFLOP/s"),
            figure(case, f"{name} of matmul", [100 * speed / result.ceiling for speed in speeds], "%"),
        ]
        memory = _mebibytes(side)
        found += [] if memory is None else [Figure(case, f"{name} peak memory", memory, "MiB")]
    if result.others:
        found.append(figure(case, "busy with others", [100 * share for share in result.others], "%"))
    return [
        *found,
        Figure(case, "matmul", result.ceiling / 1e9, "GFLOP/s"),
        Figure(case, "ours compile", result.ours.compile_seconds, "s"),
        *([Figure(case, "ours compile cached", cached, "s")] if (cached := result.ours.cached_seconds) else []),
        Figure(case, "torch first step", result.torch.compile_seconds, "s"),
    ]


def _mebibytes(side: Side) -> float | None:
    peak = side.peak_bytes()
    return None if peak is None else peak / 2**20


if __name__ == "__main__":
    guard(main)
