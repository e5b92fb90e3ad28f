"""Compares convolutions and their gradients on this device with a computation in float64.

    python -m benchmarks.convolution_check --require gpu --output results/speed.csv

The cases are those of `benchmarks.convolutions`, on few images. An error is the largest absolute difference over the
largest absolute value in float64, where the operands are those of the type in question. GPUs multiply float32 with the
10 bits of TF32 unless told otherwise, so their limit for float32 is wider than a CPU's.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.convolutions import CASES, convolution_of
from benchmarks.speed import Figure, record, table
from cnn_jax.commands.parser import ArgumentParser, guard, positive
from cnn_jax.config import TrainConfig
from cnn_jax.errors import TrainingStopped
from cnn_jax.ops.conv import conv_general_dilated
from cnn_jax.training import runtime

PARTS = ("output", "input gradient", "kernel gradient")
LIMITS = {"float32": 5e-3, "bfloat16": 2e-2}  # errors on accelerators
CPU_LIMITS = {"float32": 1e-5, "bfloat16": 2e-2}

Array = np.ndarray


def reference(
    x_BxHxWxC: Array, kernel_HxWxCxF: Array, g_BxHxWxF: Array, stride: int, pad: int, groups: int, dilation: int = 1
) -> tuple[Array, Array, Array]:
    """Convolves by its definition, as a sum over the kernel's pixels of matrix products, in the type of the operands.

    Args:
        x_BxHxWxC: maps.
        kernel_HxWxCxF: filters of C / groups channels, ordered by group.
        g_BxHxWxF: gradient of the output.
        stride, pad, dilation: the same in rows and columns.
        groups: number of feature groups.

    Returns:
        The output, the input's gradient and the kernel's.
    """
    batch, rows, columns, features = g_BxHxWxF.shape
    height, width, channels = kernel_HxWxCxF.shape[:3]

    def by_group(maps: Array) -> Array:  # (B, H, W, C) → (groups, B·H·W, C / groups)
        return maps.reshape(-1, groups, maps.shape[-1] // groups).transpose(1, 0, 2)

    def joined(maps: Array) -> Array:
        return maps.transpose(1, 0, 2).reshape(batch, rows, columns, -1)

    def along(k: int, outputs: int) -> slice:  # what the kernel's row k sees, for each row of outputs
        return slice(k * dilation, k * dilation + stride * (outputs - 1) + 1, stride)

    padded = np.pad(x_BxHxWxC, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    kernels = kernel_HxWxCxF.reshape(height, width, channels, groups, -1).transpose(0, 1, 3, 2, 4)
    g, dx, dkernels, y = by_group(g_BxHxWxF), np.zeros_like(padded), np.zeros_like(kernels), 0.0
    for i in range(height):
        for j in range(width):
            place = (slice(None), along(i, rows), along(j, columns))
            window = by_group(padded[place])
            y = y + window @ kernels[i, j]
            dkernels[i, j] = window.transpose(0, 2, 1) @ g
            dx[place] += joined(g @ kernels[i, j].transpose(0, 2, 1))
    dx = dx[:, pad : pad + x_BxHxWxC.shape[1], pad : pad + x_BxHxWxC.shape[2]]
    return joined(np.asarray(y)), dx, dkernels.transpose(0, 1, 3, 2, 4).reshape(kernel_HxWxCxF.shape)


def errors(name: str, dtype: str, images: int) -> dict[str, float]:
    """Returns the error of each part of a case, see the module's docstring."""
    shape = CASES[name]
    _, size, channels, features, width, stride, groups, dilation = shape
    pad = width // 2 * dilation
    rows = (size + 2 * pad - (width - 1) * dilation - 1) // stride + 1
    random = np.random.default_rng(0)
    shapes = (
        (images, size, size, channels),
        (width, width, channels // groups, features),
        (images, rows, rows, features),
    )
    operands = [jnp.asarray(random.normal(size=shape), jnp.dtype(dtype)) for shape in shapes]

    @jax.jit
    def ours(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(convolution_of(shape, conv_general_dilated), x, kernel)
        return y, *pull(g)

    found = [np.asarray(array, np.float64) for array in ours(*operands)]
    x, kernel, g = (np.asarray(array, np.float64) for array in operands)
    right = reference(x, kernel, g, stride, pad, groups, dilation)
    return {part: float(abs(a - b).max() / abs(b).max()) for part, a, b in zip(PARTS, found, right, strict=True)}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints and records the error of each part of each case and type.

    Raises:
        TrainingStopped: an error exceeds its limit, or is not finite; all are printed and recorded first.
    """
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--require", choices=("cpu", "gpu", "tpu"), help="refuse to run on another platform")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--types", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--images", type=positive, default=2, help="images of each case (default 2)")
    parser.add_argument("--output", type=table, help="CSV file to add the figures to")
    arguments = parser.parse_args(argv)
    runtime.prepare(TrainConfig(require=arguments.require))
    limits = CPU_LIMITS if jax.default_backend() == "cpu" else LIMITS
    wrong = []
    for name in arguments.cases:
        for dtype in arguments.types:
            found = errors(name, dtype, arguments.images)
            figures = [Figure(f"{name} {dtype}", f"{part}, error", error, "") for part, error in found.items()]
            print(*figures, sep="\n", flush=True)
            record(arguments.output, "convolution_check", figures)
            wrong += [str(figure) for figure in figures if not figure.value <= limits[dtype]]
    if wrong:
        raise TrainingStopped(f"convolutions are not what float64 says: {'; '.join(wrong)}", code=1)


if __name__ == "__main__":
    guard(main)
