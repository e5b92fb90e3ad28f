"""The benchmark against PyTorch: both sides compute the same; its output, records and errors."""

import csv
import doctest
import importlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_nets import shapes

from benchmarks import jax_side, sides, torch_side, versus_torch
from benchmarks.jax_side import MODELS, compile_step, ours
from benchmarks.sides import Side, alternate, make_batch
from benchmarks.torch_side import theirs, torch_weights
from benchmarks.versus_torch import TOLERANCES, Result, check_losses, describe, figures, main
from cnn_jax.errors import TrainingStopped, UserError

torch = pytest.importorskip("torch")
NETWORKS = importlib.import_module("benchmarks.torch_networks").NETWORKS

ROOT = Path(__file__).parents[1]
# The package's other requirements, which the benchmark does not need.
OTHERS = ["tyro", "tensorflow_datasets", "grain", "orbax", "PIL", "safetensors", "matplotlib", "tensorboardX"]
SMALL = {"resnet18": 64, "vgg11": 32, "resnet50": 64}
LAST_LINE = r"ratio \d+\.\d\d \(\d+\.\d\d–\d+\.\d\d\)"
TINY = ["--device", "cpu", "--batch-size", "2", "--blocks", "2", "--seconds", "0.01"]


def image_of(name: str) -> tuple[int, int, int]:
    model: Any = MODELS[name](dtype=np.float32)
    height, width, channels = model.input_shape
    side = SMALL.get(name)
    return side or height, side or width, channels


def quickly(step: Any, state: Any, batch: Any) -> Any:
    """Stands in for `compile_step`: compiles once and faster, into a slower program."""
    hasty = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(step, donate_argnums=0).lower(state, batch).compile(hasty), 1.0, 1.0


def drawn(model: Any, image: tuple[int, int, int]) -> Any:
    """A faster stand-in for `initial_variables`."""
    numbers = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            return numbers.standard_normal(leaf.shape, np.float32) * np.sqrt(2 / np.prod(leaf.shape[:-1]), dtype="f")
        last = path[-2].key == f"bn{3 if getattr(model, 'bottleneck', False) else 2}"
        zero = name in ("bias", "mean") or (last and getattr(model, "zero_init_residual", False) and name == "scale")
        return np.zeros(leaf.shape, np.float32) if zero else np.ones(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(model, image))


@pytest.fixture
def quick(monkeypatch):
    """For tests where compile time, the matmul ceiling and the initial weights do not matter."""
    monkeypatch.setattr(jax_side, "compile_step", quickly)
    monkeypatch.setattr(jax_side, "initial_variables", drawn)
    monkeypatch.setattr(versus_torch, "MATMUL", {"cpu": 64})


def both(name: str, dtype: str) -> tuple[Any, Side, Side]:
    """Returns the initial weights and the two sides."""
    model, image = MODELS[name](dtype=jnp.dtype(dtype)), image_of(name)
    batch = make_batch(4, image, model.num_classes)
    variables = drawn(model, image)
    net = NETWORKS[name](image, model.num_classes)
    return variables, ours(model, variables, batch), theirs(net, variables, batch, "cpu", dtype, compiled=False)


@pytest.mark.parametrize("name", MODELS)
def test_both_sides_have_the_same_losses(name, quick):
    variables, mine, other = both(name, "float32")
    check_losses(mine.losses, other.losses, TOLERANCES["float32"])
    assert len(set(mine.losses)) == len(mine.losses)  # it trains
    weights = sum(array.nbytes for array in jax.tree.leaves(variables["params"]))
    assert (mine.peak_bytes() or 0) > 2 * weights  # weights and momentum
    assert other.peak_bytes() is None


def test_both_sides_have_the_same_losses_in_bfloat16(quick):
    _, mine, other = both("resnet20", "bfloat16")
    check_losses(mine.losses, other.losses, TOLERANCES["bfloat16"])
    with pytest.raises(TrainingStopped):  # so it was not float32
        check_losses(mine.losses, other.losses, (1e-6, 1e-6))


def test_compiling_with_a_cold_and_a_warm_cache():
    config: Any = jax.config
    before = config.jax_compilation_cache_dir
    traced = []

    def step(state: jax.Array, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        traced.append(config.jax_compilation_cache_dir)
        return state + batch, batch

    compiled, cold, warm = compile_step(step, jnp.zeros(3), jnp.ones(3))
    assert len(traced) == 2 and len(set(traced)) == 1 and traced[0] != before
    assert config.jax_compilation_cache_dir == before
    assert cold > 0 and warm > 0
    state = jnp.ones(3)
    assert compiled(state, jnp.ones(3))[0].tolist() == [2, 2, 2]
    assert state.is_deleted()  # donated


def test_the_command_prints_the_ratio_last_and_records_the_figures(tmp_path, capsys):
    table = tmp_path / "speed.csv"
    main(["--model", "lenet5", *TINY, "--output", str(table)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("lenet5 batch 2: 28x28x1 float32 on cpu") and "torch" in lines[0]
    assert lines[1].startswith("losses of the first steps")
    assert re.fullmatch(LAST_LINE, lines[-1])
    with table.open() as file:
        rows = {row["measure"]: row for row in csv.DictReader(file)}
    assert {row["benchmark"] for row in rows.values()} == {"versus_torch"}
    assert {row["case"] for row in rows.values()} == {"lenet5 batch 2"}
    assert {"ours / torch", "ours", "torch", "matmul", "ours compile", "torch first step"} <= set(rows)
    ratio = rows["ours / torch"]
    assert float(ratio["low"]) <= float(ratio["value"]) <= float(ratio["high"]) and ratio["n"] == "2"
    assert f"torch {torch.__version__.partition('+')[0]}" in ratio["versions"]


def test_another_image_size_is_another_case(tmp_path, capsys, quick):
    table = tmp_path / "speed.csv"
    main(["--model", "lenet_like", *TINY, "--image-size", "12", "--output", str(table)])
    assert "lenet_like batch 2 of 12x12" in table.read_text()
    assert re.fullmatch(LAST_LINE, capsys.readouterr().out.splitlines()[-1])


def test_jax_flax_optax_numpy_and_torch_are_enough():
    code = (
        f"import sys\nfor name in {OTHERS}: sys.modules[name] = None\n"
        f"from benchmarks.versus_torch import main\nmain(['--model', 'lenet5', *{TINY}])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(LAST_LINE, done.stdout.splitlines()[-1])


def test_mismatched_weights_are_not_timed(monkeypatch, quick):
    def changed(variables: Any) -> Any:
        state = torch_weights(variables)
        state["output.bias"] += np.arange(10, dtype=np.float32) / 100
        return state

    monkeypatch.setattr(torch_side, "torch_weights", changed)
    monkeypatch.setattr(versus_torch, "alternate", lambda *arguments: pytest.fail("timed"))
    with pytest.raises(TrainingStopped, match="losses of step 1 differ"):
        main(["--model", "lenet5", *TINY])


def test_tolerance_of_the_losses():
    check_losses([2.0, 1.0], [2.0001, 1.0019], (1e-4, 1e-3))
    for losses, step in (([2.001, 1.0], 1), ([2.0, 1.0021], 2), ([2.0, float("nan")], 2)):
        with pytest.raises(TrainingStopped, match=f"step {step} differ"):
            check_losses(losses, [2.0, 1.0], (1e-4, 1e-3))
    with pytest.raises(TrainingStopped, match="step 1 differ"):
        check_losses([float("nan")], [float("nan")], (1e-4, 1e-3))


def test_blocks_alternate_between_the_sides(monkeypatch):
    now, turns = 0.0, []

    def train(name: str, seconds: float) -> Any:
        def run(steps: int) -> float:
            nonlocal now
            now += steps * seconds
            turns.append((name, steps))
            return 0.0

        return run

    monkeypatch.setattr(sides, "time", SimpleNamespace(perf_counter=lambda: now, sleep=lambda seconds: None))
    monkeypatch.setattr(sides, "_processor_ticks", lambda: None)
    rates = alternate(train("ours", 0.25), train("torch", 0.5), batch_size=8, blocks=3, seconds=4.0)
    assert rates == ([32.0] * 3, [16.0] * 3, [])
    blocks = [("ours", 16), ("torch", 8), ("torch", 8), ("ours", 16), ("ours", 16), ("torch", 8)]
    assert turns[-6:] == blocks  # of four seconds each, after the warm-up


def test_load_from_other_processes_is_the_time_not_idle(monkeypatch):
    monkeypatch.setattr(sides, "time", SimpleNamespace(sleep=lambda seconds: None))
    ticks = iter([(1000, 500), (1200, 650), (1200, 650), (1200, 650)])
    monkeypatch.setattr(sides, "_processor_ticks", lambda: next(ticks))
    assert sides.pause() == 0.25
    assert sides.pause() is None  # too short to measure


def made_up() -> Result:
    mine = Side(lambda steps: 0.0, (), 3.0, 0.5, lambda: 2**20)
    other = Side(lambda steps: 0.0, (), 1.0, None, lambda: None)
    return Result(mine, other, [100.0, 90.0, 120.0], [50.0, 60.0, 100.0], [0.0, 0.25, 0.5], 10**9, 2e11)


def test_the_table_has_medians_shares_and_unknowns():
    lines = describe(made_up()).splitlines()
    rows = {line[:28].strip(): line[28:].split() for line in lines[1:-2]}
    assert rows["images/s"] == ["100", "60"]
    assert rows["GFLOP/s"] == ["100", "60"]
    assert rows["% of matmul's 200"] == ["50", "30"]
    assert rows["peak memory, MiB"] == ["1", "n/a"]
    assert rows["compile or first step, s"] == ["3", "1"] and rows["the same from cache, s"] == ["0.5", "n/a"]
    assert rows["other load, %"] == ["25"]
    assert lines[-2].startswith("warning: other programs")
    assert lines[-1] == "ratio 1.50 (1.20–2.00)"
    assert "warning" not in describe(replace(made_up(), others=[0.0, 0.01]))


def test_figures_have_spread_and_leave_out_what_is_unknown():
    found = {f.measure: f for f in figures("a case", made_up())}
    ratio = found["ours / torch"]
    assert (ratio.value, ratio.low, ratio.high, ratio.n, ratio.unit) == (1.5, 1.2, 2.0, 3, "x")
    assert found["torch of matmul"].value == pytest.approx(30.0)
    assert found["ours peak memory"].value == 1.0 and "torch peak memory" not in found
    assert found["ours compile cached"].value == 0.5


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--model lenet6 --device cpu", "lenet6"),
        ("--model lenet5", "--device"),
        ("--model lenet5 --device gpu", "JAX found cpu, not a GPU: install"),
        ("--model lenet5 --device cpu --batch-size 1", "--batch-size is 1: it must be at least 2"),
        ("--model lenet5 --device cpu --blocks 0", "--blocks is 0: it must be a whole number of at least 1"),
        ("--model lenet5 --device cpu --seconds 0", "--seconds is 0: it must be a number greater than 0"),
        ("--model lenet5 --device cpu --seconds nan", "--seconds is nan: it must be a number greater than 0"),
        ("--model lenet5 --device cpu --image-size 4", "conv2: given a 2x2 map"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        main(arguments.split())
    assert "\n" not in str(caught.value)


def test_without_pytorch_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="pip install torch"):
        main(["--model", "lenet5", *TINY])


def test_torch_compile_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="no-such-compiler"):
        main(["--model", "lenet5", *TINY, "--compile"])


def test_pytorch_without_the_gpu_of_jax(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="PyTorch .* found no GPU"):
        torch_side.import_torch("gpu")


def test_examples():
    assert doctest.testmod(torch_side).failed == 0
