"""Times single convolutions of `cnn_jax.ops` against XLA's on this CPU: the output and both gradients.

    python -m benchmarks.convolutions --output results/speed.csv

Each part is a program of its own, timed alternately with XLA's; both are compiled first. The ratio is XLA's time over
ours: above 1, ours is faster.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed import figure, record, table
from benchmarks.timing import timed_pair
from cnn_jax.commands.parser import ArgumentParser, guard, positive, positive_number
from cnn_jax.errors import UserError
from cnn_jax.ops import conv_general_dilated, native
from cnn_jax.training.runtime import keep_memory


class Shape(NamedTuple):
    """A convolution of square maps with a square kernel, padded by half its size."""

    images: int
    size: int
    channels: int
    features: int
    width: int
    stride: int
    groups: int
    dilation: int = 1


CASES = {
    "lenet5 conv1": Shape(128, 28, 1, 6, 5, 1, 1),
    "lenet5 conv2": Shape(128, 14, 6, 16, 5, 1, 1),
    "resnet20 stage 1": Shape(128, 32, 16, 16, 3, 1, 1),
    "resnet20 stage 2": Shape(128, 16, 32, 32, 3, 1, 1),
    "resnet20 stage 3": Shape(128, 8, 64, 64, 3, 1, 1),
    "resnet20 stride 2": Shape(128, 32, 16, 32, 3, 2, 1),
    "resnet50 conv1": Shape(8, 224, 3, 64, 7, 2, 1),
    "resnet50 3x3": Shape(8, 14, 256, 256, 3, 1, 1),
    "resnet50 1x1": Shape(8, 28, 512, 128, 1, 1, 1),
    "mobilenet depthwise": Shape(8, 56, 144, 144, 3, 1, 144),
    "convnext depthwise": Shape(8, 56, 96, 96, 7, 1, 96),
    "resnext groups": Shape(8, 28, 256, 256, 3, 1, 32),
    "atrous 2": Shape(8, 28, 256, 256, 3, 1, 1, 2),
    "atrous 4": Shape(8, 28, 256, 256, 3, 1, 1, 4),
}


def parts_of(
    convolve: Callable[[Any, Any], jax.Array], x: jax.Array, kernel: jax.Array
) -> dict[str, Callable[[], Any]]:
    """Returns compiled, blocking calls for the output, the input gradient and the kernel gradient, by name."""
    g = jnp.ones_like(jax.eval_shape(convolve, x, kernel))
    programs = {
        "output": (jax.jit(convolve), x, kernel),
        "input gradient": (jax.jit(lambda g, kernel: jax.vjp(lambda x: convolve(x, kernel), x)[1](g)), g, kernel),
        "kernel gradient": (jax.jit(lambda x, g: jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](g)), x, g),
    }
    calls = {}
    for name, (program, *arguments) in programs.items():
        compiled = program.lower(*arguments).compile()
        calls[name] = lambda compiled=compiled, arguments=arguments: jax.block_until_ready(compiled(*arguments))
    return calls


def repeated(call: Callable[[], Any], seconds: float) -> Callable[[], float]:
    """Returns a function that runs a block of calls for about `seconds` and returns the mean time of one call."""

    def block(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - start) / times

    block(1)  # the first call allocates
    return partial(block, max(1, round(seconds / block(1))))


def convolution_of(shape: Shape, convolve: Callable[..., jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns `jax.lax.conv_general_dilated`, or a function with its arguments, for operands of this shape."""
    pad = shape.width // 2 * shape.dilation
    return partial(
        convolve,
        window_strides=(shape.stride, shape.stride),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(shape.dilation, shape.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=shape.groups,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints and records two figures for each part of each case.

    Raises:
        UserError: the compiled convolutions are not available.
    """
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--blocks", type=positive, default=5, help="pairs of blocks (default 5)")
    parser.add_argument("--seconds", type=positive_number, default=0.3, help="target length of a block (default 0.3)")
    parser.add_argument("--output", type=table, help="CSV file to add the figures to")
    arguments = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    keep_memory()
    if not native.available():
        raise UserError(f"no compiled convolutions ({native.status()}): install a C++ compiler, or set CXX")
    for name in arguments.cases:
        shape, dtype = CASES[name], jnp.dtype(arguments.precision)
        random = np.random.default_rng(0)
        x = jnp.asarray(random.normal(size=(shape.images, shape.size, shape.size, shape.channels)), dtype)
        sizes = (shape.width, shape.width, shape.channels // shape.groups, shape.features)
        kernel = jnp.asarray(random.normal(size=sizes), dtype)
        xla = parts_of(convolution_of(shape, jax.lax.conv_general_dilated), x, kernel)
        ours = parts_of(convolution_of(shape, conv_general_dilated), x, kernel)
        label = name if arguments.precision == "float32" else f"{name} {arguments.precision}"
        figures = []
        for part in xla:
            theirs, own = (repeated(calls[part], arguments.seconds) for calls in (xla, ours))
            pairs = [timed_pair(theirs, own, turn) for turn in range(arguments.blocks)]
            case = f"{label}, {part}"
            figures += [
                figure(case, "XLA / ours", [a / b for a, b in pairs], "x"),
                figure(case, "ours", [1e3 * b for _, b in pairs], "ms"),
            ]
        print(*figures, sep="\n", flush=True)
        record(arguments.output, "convolutions", figures)


if __name__ == "__main__":
    guard(main)
