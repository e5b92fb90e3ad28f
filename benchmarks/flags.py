"""Times the training step compiled with other XLA flags, against the same step with the defaults.

    python -m benchmarks.flags --model resnet50 --image 224 --batch 256 --classes 1000 --precision bfloat16 \\
        --output results/speed.csv
    python -m benchmarks.flags --flags xla_gpu_enable_triton_gemm=False

Flags are passed to the compiler for one program alone, so that both programs run alternately in one process. They are
written without dashes. The ratio is the default's time over the flag's: above 1,
the flag is faster. A flag that this version of XLA does not know is named and left out.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial

import jax

from benchmarks.growth import Case
from benchmarks.speed import Figure, figure, record, table
from benchmarks.timing import Bench, make_bench, timed_pair
from cnn_jax.commands.parser import ArgumentParser, guard, positive, positive_number
from cnn_jax.errors import UserError

GPU_FLAGS = (
    # Default: FUSION, CUBLAS, CUBLASLT, CUSTOM_CALL, CUDNN, CONDITIONAL, DYNAMIC_SLICE_FUSION.
    "xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONVOLUTION",
    "xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONVOLUTION,WHILE",
    "xla_gpu_graph_min_graph_size=1",
    "xla_gpu_enable_triton_gemm=False",
    "xla_gpu_cudnn_gemm_fusion_level=3",
    "xla_gpu_experimental_enable_conv_fusion=True",
    "xla_gpu_enable_latency_hiding_scheduler=True",
    "xla_gpu_exhaustive_tiling_search=True",
)
CPU_FLAGS = ("xla_cpu_enable_fast_math=True", "xla_cpu_multi_thread_eigen=False")


def parse_flag(text: str) -> tuple[str, bool | int | str]:
    """Splits NAME=VALUE into the name and the value in the type that XLA expects.

    Raises:
        UserError: there is no "=".

    >>> parse_flag("xla_gpu_enable_triton_gemm=false"), parse_flag("xla_gpu_autotune_level=4")
    (('xla_gpu_enable_triton_gemm', False), ('xla_gpu_autotune_level', 4))
    """
    name, equals, value = text.strip().partition("=")
    if not (name and equals and value):
        raise UserError(f"--flags {text} is not NAME=VALUE: write such as xla_gpu_autotune_level=4")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    return name, int(value) if value.lstrip("-").isdigit() else value


def compare(case: str, default: Bench, other: Bench, blocks: int, seconds: float) -> list[Figure]:
    """Times blocks of about `seconds` of both, alternately."""
    steps = default.steps_in(seconds)
    other.bare(1)
    pairs = [timed_pair(partial(default.bare, steps), partial(other.bare, steps), turn) for turn in range(blocks)]
    return [
        figure(case, "default / with the flag", [one / two for one, two in pairs], "x"),
        figure(case, "step with the flag", [1e3 * two for _, two in pairs], "ms"),
        figure(case, "default step", [1e3 * one for one, _ in pairs], "ms"),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints and records three figures for each flag.

    Raises:
        UserError: a flag is not NAME=VALUE, or the model's name does not end in its depth.
    """
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", help="a name that ends in its depth (default resnet20)")
    parser.add_argument("--image", type=positive, default=32, help="height and width in pixels (default 32)")
    parser.add_argument("--batch", type=positive, default=128, help="images per step (default 128)")
    parser.add_argument("--classes", type=positive, default=10, help="number of classes (default 10)")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--flags", nargs="+", metavar="NAME=VALUE", help="default: a choice for this platform")
    parser.add_argument("--blocks", type=positive, default=5, help="pairs of blocks (default 5)")
    parser.add_argument(
        "--block-seconds", type=positive_number, default=1.0, help="target length of a block (default 1)"
    )
    parser.add_argument(
        "--seconds", type=positive_number, default=600.0, help="start no flag that would end later (default 600)"
    )
    parser.add_argument("--output", type=table, help="CSV file to add the figures to")
    arguments = parser.parse_args(argv)
    start = time.perf_counter()
    case = Case.of(arguments.model, arguments.image, arguments.batch, arguments.classes, arguments.precision)
    given = [(text, parse_flag(text)) for text in arguments.flags or ()]
    default, longest = make_bench(case.config()), 0.0
    if not given:
        chosen = CPU_FLAGS if jax.default_backend() == "cpu" else GPU_FLAGS
        given = [(text, parse_flag(text)) for text in chosen]
    for number, (text, (name, value)) in enumerate(given):
        began = time.perf_counter()
        if began + longest > start + arguments.seconds:
            print(f"ends before {', '.join(text for text, _ in given[number:])}: no time left", flush=True)
            return
        try:
            other = make_bench(case.config(), options={name: value})
        except jax.errors.JaxRuntimeError as error:
            print(f"left out {text}: {str(error).partition(chr(10))[0]}", flush=True)
            continue
        figures = compare(f"{case}, {text}", default, other, arguments.blocks, arguments.block_seconds)
        print(*figures, sep="\n", flush=True)
        record(arguments.output, "flags", figures)
        longest = max(longest, time.perf_counter() - began)


if __name__ == "__main__":
    guard(main)
