"""Times our training step against PyTorch's, on this machine.

    python -m benchmarks.versus_torch --model resnet20 --device cpu --output results/speed.csv

Both train the same network from the same weights on the same batch of normalized float32 images, already on the
device, with cross-entropy and SGD with Nesterov momentum. Ours is the step of the experiments
(`cnn_jax.training.step`), with its metrics, compiled with a donated state. PyTorch uses channels_last tensors, one
thread per core and the fused optimizer. On a GPU both compute in bfloat16 (PyTorch by autocast), and PyTorch uses
torch.compile(max-autotune). Dropout is 0, because the two draw different masks.

The losses of the first three steps must agree, or nothing is timed. Then blocks of each are timed alternately, after a
pause in which the other's threads go to sleep. Processor time used during the pause is other programs', and flatters
our ratio: PyTorch's threads spin while they wait for each other, and lose several times more than ours to anything else
that runs. Measure on an idle machine.

The ratio is our images per second over PyTorch's: above 1, ours is faster. FLOPs are three times those of the forward
pass; the ceiling is a large matrix product of the same type, by the faster of the two libraries. Peak memory is the
allocator's count on a GPU; on a CPU, what our compiled step needs (PyTorch does not say). Compile time is that of our
step without and with its program in the cache, and that of PyTorch's first step. Needs jax, flax, optax, numpy and
torch.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import jax_side, torch_side
from benchmarks.sides import Image, Side, alternate, make_batch
from benchmarks.speed import Figure, figure, record, table
from cnn_jax.commands.parser import ArgumentParser, guard, positive, positive_number
from cnn_jax.errors import TrainingStopped, UserError
from cnn_jax.inspect.summary import count_flops
from cnn_jax.training.runtime import keep_memory

BUSY = 0.05  # share of the processor that other programs may use without a warning
TOLERANCES = {"float32": (1e-4, 1e-3), "bfloat16": (2e-2, 5e-2)}  # of the first step, of the others
MATMUL = {"cpu": 2048, "gpu": 4096}  # side of the matrices


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        ours, torch: the two sides.
        ours_rates, torch_rates: images/s of each block, in the same order.
        others: share of the processor that other programs used in the pause before each block; empty if unknown.
        flops: per image in training.
        ceiling: FLOP/s of a matrix product.
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
        """Our rate over PyTorch's, for each pair of blocks."""
        return [ours / torch for ours, torch in zip(self.ours_rates, self.torch_rates, strict=True)]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and records one model.

    Raises:
        UserError: PyTorch is not installed, there is no such device, or a number is out of range.
        TrainingStopped: the two do not compute the same.
    """
    arguments = _parse(argv)
    device, name = arguments.device, arguments.model
    keep_memory()  # as every run of ours does; PyTorch's tensors benefit, too
    _choose(device)
    torch = torch_side.import_torch(device)
    from benchmarks import torch_networks

    compiled = device == "gpu" if arguments.compile is None else arguments.compile
    if compiled:
        torch_side.check_compiler(device)
    dtype = "bfloat16" if device == "gpu" else "float32"
    model: Any = jax_side.MODELS[name](dtype=jnp.dtype(dtype))
    height, width, channels = model.input_shape
    if arguments.image_size is not None:
        height = width = arguments.image_size
    image = (height, width, channels)
    size = arguments.batch_size or _usual_batch(device, image)
    batch = make_batch(size, image, model.num_classes)
    variables = jax_side.initial_variables(model, image)
    how = "torch.compile" if compiled else "eager"
    case = f"{name} batch {size}"
    case += f" of {height}x{width}" if image != model.input_shape else ""
    case += f" {how}" if compiled != (device == "gpu") else ""
    print(
        f"{case}: {height}x{width}x{channels} {dtype} on {device}, jax {jax.__version__}, "
        f"torch {torch.__version__} {how}, {torch.get_num_threads()} threads",
        flush=True,
    )
    mine = jax_side.ours(model, variables, batch)
    net = torch_networks.NETWORKS[name](image, model.num_classes)
    other = torch_side.theirs(net, variables, batch, device, dtype, compiled)
    check_losses(mine.losses, other.losses, TOLERANCES[dtype])
    ceiling = max(jax_side.matmul(MATMUL[device], dtype), torch_side.matmul(MATMUL[device], dtype, device))
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
    parser.add_argument("--model", required=True, choices=jax_side.MODELS)
    parser.add_argument("--device", required=True, choices=("cpu", "gpu"))
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="default: 256 on a GPU; on a CPU 128, or 8 large images"
    )
    parser.add_argument("--image-size", type=int, metavar="N", help="height and width (default: the model's own)")
    parser.add_argument("--blocks", type=positive, default=7, help="pairs of blocks (default 7)")
    parser.add_argument("--seconds", type=positive_number, default=3.0, help="target length of a block (default 3)")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="torch.compile (default: on a GPU only)"
    )
    parser.add_argument("--output", type=table, metavar="FILE", help="CSV to add the figures to")
    arguments = parser.parse_args(argv)
    # Batch normalisation of 1x1 maps needs two images.
    for flag, value, least in (
        ("--batch-size", arguments.batch_size, 2),
        ("--image-size", arguments.image_size, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{flag} is {value}: it must be at least {least}")
    return arguments


def _choose(device: str) -> None:
    """Makes JAX use the device.

    Raises:
        UserError: JAX finds no GPU.
    """
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave memory to PyTorch
    try:
        found = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # JAX_PLATFORMS names a platform that is not there
        found = " ".join(str(error).split())[:160] or "none"
    if found != "gpu":
        raise UserError(
            f"JAX found {found}, not a GPU: install its GPU build (pip install -e '.[cuda13]' or '.[cuda12]'), "
            "or use --device cpu"
        )


def _usual_batch(device: str, image: Image) -> int:
    if device == "gpu":
        return 256
    return 128 if image[0] * image[1] < 64 * 64 else 8


def check_losses(ours: Sequence[float], torch: Sequence[float], tolerances: tuple[float, float]) -> None:
    """Prints the losses of the first steps of both sides, and checks that they agree.

    Args:
        ours, torch: one loss per step.
        tolerances: largest difference allowed in the first step, where the weights are the same, and in the others, as
            shares of the first loss.

    Raises:
        TrainingStopped: they differ by more, or are not finite.
    """
    show = lambda losses: ", ".join(f"{loss:.6g}" for loss in losses)  # noqa: E731
    print(f"losses of the first steps: ours {show(ours)}; torch {show(torch)}", flush=True)
    allowed = (tolerances[0], *[tolerances[1]] * (len(ours) - 1))
    for step, (mine, other, tolerance) in enumerate(zip(ours, torch, allowed, strict=True), start=1):
        if not abs(mine - other) <= tolerance * abs(torch[0]):  # also false for NaN
            raise TrainingStopped(
                f"the losses of step {step} differ by more than {tolerance:g} of the first: ours {mine:.6g}, torch "
                f"{other:.6g}; the two do not compute the same, so nothing is timed",
                code=1,
            )


def describe(result: Result) -> str:
    """Returns a table of both sides, a warning if the machine was busy, and the ratio as the last line."""
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
        ("the same from cache, s", number(result.ours.cached_seconds), number(result.torch.cached_seconds)),
    ]
    if result.others:
        rows.append(("other load, %", number(100 * statistics.median(result.others)), ""))
    lines = [f"{name:<28}{one:>12}{other:>12}" for name, one, other in rows]
    if result.others and max(result.others) > BUSY:
        lines.append("warning: other programs used the processor, which slows PyTorch down more than us: measure again")
    ratios = result.ratios
    return "\n".join([*lines, f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"])


def figures(case: str, result: Result) -> list[Figure]:
    """Returns the figures for the table of speeds."""
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
