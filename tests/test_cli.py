"""The command line: flag names, dependent defaults, one-line errors, and no JAX import for help or mistakes."""

import contextlib
import importlib
import os
import pty
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cnn_jax.__main__
from cnn_jax.__main__ import VERBS
from cnn_jax.commands.experiment import parse
from cnn_jax.commands.parser import ArgumentParser, guard, positive, with_flags
from cnn_jax.config import Config
from cnn_jax.errors import UserError
from cnn_jax.runs.results import write_rows

pytestmark = pytest.mark.usefixtures("one_device")

BASE = Config("digits_lenet5").override(
    optimizer="momentum", optimizer_args=("decay=0.8",), learning_rate=0.1, train_split="train[:50%]"
)
PRESETS = {"quick": BASE.override(epochs=1)}


def parsed(*argv: str) -> Config:
    return parse(argv, BASE, "What it does.", PRESETS)


def run_code(code: str, *argv: str, **settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, **settings)


def test_flags_have_the_names_of_the_fields():
    config = parsed("--batch-size", "7", "--augment", "flip", "pad_crop:padding=4", "--seed", "3", "--fresh")
    assert config.data.batch_size == 7 and config.data.augment == ("flip", "pad_crop:padding=4")
    assert config.train.seed == 3 and config.train.fresh


def test_another_optimizer_starts_from_its_own_rate_and_arguments():
    config = parsed("--optimizer", "adam")
    assert config.optim.learning_rate is None and config.optim.optimizer_args == ()
    config = parsed("--optimizer", "adam", "--learning-rate", "0.1", "--optimizer-args", "b1=0.95")
    assert config.optim.learning_rate == 0.1 and config.optim.optimizer_args == ("b1=0.95",)
    assert parsed("--optimizer", "momentum").optim.learning_rate == 0.1
    decayed = BASE.override(weight_decay=1e-2)
    assert parse(["--optimizer", "adafactor"], decayed).optim.weight_decay == 0
    assert parse(["--optimizer", "adafactor", "--weight-decay", "1e-2"], decayed).optim.weight_decay == 1e-2


def test_another_data_set_has_its_own_splits():
    assert parsed("--dataset", "xo").data.train_split is None
    assert parsed("--dataset", "xo", "--train-split", "train[:10]").data.train_split == "train[:10]"


def test_augmentations_of_the_experiment_are_named_when_they_meet_another_data_set(capsys):
    base = Config("cifar10_resnet").override(dataset="cifar10", augment=("pad_crop:padding=4", "flip"))
    assert parse(["--dataset", "digits"], base).data.augment == ("pad_crop:padding=4", "flip")
    assert capsys.readouterr().out == (
        "augment    pad_crop:padding=4, flip, chosen for cifar10, also apply to digits: "
        "an empty --augment turns them off\n"
    )
    assert parse(["--dataset", "digits", "--augment"], base).data.augment == ()
    parse(["--dataset", "digits", "--augment", "pad_crop:padding=4", "flip"], base)
    parse(["--seed", "1"], base)
    assert capsys.readouterr().out == "", "nothing was taken over"


def test_another_schedule_has_its_own_arguments():
    base = BASE.override(schedule="step", schedule_args=("factor=0.1",))
    assert parse(["--schedule", "cosine"], base).optim.schedule_args == ()
    assert parse(["--seed", "1"], base).optim.schedule_args == ("factor=0.1",)


def test_a_size_in_the_name_of_a_data_set_is_the_size():
    base = BASE.override(image_size=28)
    assert parse(["--dataset", "synthetic:32x32x3:10"], base).data.image_size is None
    assert parse(["--dataset", "xo:size=32"], base).data.image_size is None
    assert parse(["--dataset", "mnist"], base).data.image_size == 28


@pytest.mark.parametrize("fault", ["open('/nowhere/file')", "raise MemoryError('too much')", "raise SystemExit(0)"])
def test_the_error_of_a_users_module_is_shown_whole(fault, tmp_path):
    (tmp_path / "mine.py").write_text(f"{fault}\n")
    flags = ["--model", "mine:Net", "--steps", "1"]
    command = [sys.executable, "-m", "experiments.digits_lenet5", *flags]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1 and "Traceback" in done.stderr and 'mine.py", line 1' in done.stderr
    assert "mine fails when it is imported" in done.stderr
    assert {*os.listdir(tmp_path)} <= {"mine.py", "__pycache__"}, "nothing was written"


@pytest.mark.parametrize(
    "argv",
    [
        ["evaluate", "~/no-run"],
        ["predict", "~/no-run", "~/no-image.png"],
        ["committee", "~/no-run", "~/no-run"],
        ["weights", "export", "~/no-run", "file.safetensors"],
        ["results", "collect", "~/no-run", "--output", "~/table.csv"],
    ],
)
def test_a_tilde_is_the_home_folder_in_every_path(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["cnn_jax", *argv])
    with pytest.raises(SystemExit) as stop:
        cnn_jax.__main__.main()
    assert stop.value.code == 2
    assert f"{tmp_path}/no-" in capsys.readouterr().err


def test_steps_replace_epochs_and_both_are_refused():
    config = parsed("--steps", "5")
    assert (config.train.steps, config.train.epochs) == (5, None)
    with pytest.raises(UserError, match="`steps` and `epochs`"):
        parsed("--steps", "5", "--epochs", "1")


def test_preset_names_the_folder_and_flags_come_after_it():
    config = parsed("--preset", "quick", "--seed", "4")
    assert (config.train.epochs, config.train.seed) == (1, 4)
    assert config.train.workdir is not None and config.train.workdir.endswith("digits_lenet5-quick")


def test_a_saved_config_is_repeated(tmp_path):
    first = parsed("--batch-size", "7", "--optimizer", "adam", "--workdir", "somewhere")
    (tmp_path / "config.json").write_text(first.to_json())
    again = parsed("--config", str(tmp_path / "config.json"))
    assert again.difference(first) == [] and again.train.workdir == "runs/somewhere-repeated"
    preset = parsed("--preset", "quick")
    (tmp_path / "config.json").write_text(preset.to_json())
    again = parsed("--config", str(tmp_path / "config.json"))
    assert again.train.workdir == f"{preset.train.workdir}-repeated", "not the folder of the run without preset"


def test_the_config_of_another_experiment_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(BASE.to_json().replace("digits_lenet5", "mnist_cnn"))
    with pytest.raises(UserError, match=r"python -m experiments\.mnist_cnn --config"):
        parsed("--config", str(tmp_path / "config.json"))


def test_a_folder_is_found_from_anywhere():
    dataset = parsed("--dataset", "folder:images").data.dataset
    assert dataset.startswith("folder:/") and dataset.endswith("/images")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--dataset", "folder:"], "folder:PATH"),
        (["--batch-size", "0"], "--batch-size is 0: it must be more than 0"),
        (["--batch-size", "10", "--accumulate", "3"], "--accumulate is 3"),
        (["--preset", "quik"], "quick"),
        (["--label-smoothing", "1"], "at least 0 and less than 1"),
        (["--learning-rate", "nan"], "finite"),
        (["--epochs", "inf"], "finite"),
        (["--seed", str(2**32)], "2**32"),
        (["--steps", str(2**31)], "2**31"),
        (["--seed", "-1"], "0 or more"),
        (["--config", "absent.json"], "absent.json"),
        (["--preset", "quick", "--config", "a.json"], "drop one"),
        (["--members", "3", "--member-learning-rates", "0.1", "0.2"], "drop --members"),
    ],
)
def test_a_mistake_is_answered_in_one_line(argv, said):
    with pytest.raises(UserError) as error:
        parsed(*argv)
    shown = with_flags(str(error.value))
    assert said in shown and "\n" not in shown and "`" not in shown


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--optimzer", "adam"], ["--optimzer", "--optimizer"]),
        (["--optimiser=adam"], ["--optimiser=adam"]),
        (["adam"], ["adam"]),
        (["--steps", "1.5"], ["--steps", "1.5"]),
        (["--member-learning-rates", "x"], ["--member-learning-rates", "x"]),
        (["--pipeline", "strem"], ["--pipeline", "strem", "auto", "resident", "stream"]),
        (["--batch-size", "many"], ["--batch-size", "many"]),
        (["--epochs", "x"], ["--epochs", "x"]),
        (["--precision", "half"], ["--precision", "half", "float32", "bfloat16"]),
        (["--normalize", "maybe"], ["--normalize", "maybe", "dataset"]),
        (["--preset", "--seed", "1"], ["--preset"]),
        (["--epochs"], ["--epochs"]),
    ],
)
def test_tyro_answers_what_it_cannot_parse_and_nothing_is_written(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        parsed(*argv)
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and all(word in shown for word in said), shown
    assert os.listdir(tmp_path) == []


def test_neither_epochs_nor_steps_is_answered_with_what_to_do():
    with pytest.raises(UserError) as error:
        parse([], BASE.override(epochs=None, steps=None))
    assert with_flags(str(error.value)) == "set --epochs or --steps"


@pytest.mark.parametrize(
    ("argv", "fresh"),
    [
        (["--fresh"], True),
        (["--no-fresh"], False),
        (["--fresh", "True"], True),
        (["--fresh", "false"], False),
        (["--fresh=true"], True),
        (["--fresh=True"], True),
        (["--fresh=False"], False),
        (["--fresh=false"], False),
    ],
)
def test_boolean_flags_mean_what_they_say(argv, fresh):
    for base in (BASE, BASE.override(fresh=not fresh)):
        config = parse([*argv, "--seed", "3"], base)
        assert config.train.fresh is fresh and config.train.seed == 3
    underscored = parsed("--skip_bad_images=True", "--decay-all", "true")
    assert underscored.data.skip_bad_images and underscored.optim.decay_all


@pytest.mark.parametrize("joined", [False, True])
def test_the_home_folder_is_expanded_in_every_path(joined, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "saved.json").write_text(BASE.to_json(), encoding="utf-8")

    def given(flag: str, value: str) -> Config:
        return parsed(f"{flag}={value}") if joined else parsed(flag, value)

    assert given("--workdir", "~/run").train.workdir == f"{tmp_path}/run"
    assert given("--data-dir", "~/sets").data.data_dir == f"{tmp_path}/sets"
    assert given("--init-from", "~/weights").model.init_from == f"{tmp_path}/weights"
    assert given("--dataset", "folder:~/images").data.dataset == f"folder:{tmp_path}/images"
    assert given("--config", "~/saved.json").difference(BASE) == []


def test_a_saved_config_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "config.json").write_text(BASE.to_json(), encoding="utf-8-sig")
    assert Config.load(tmp_path / "config.json") == BASE
    assert parsed("--config", str(tmp_path / "config.json")).difference(BASE) == []


def test_help_lists_every_verb_and_imports_nothing_heavy():
    heavy = "{'jax', 'numpy', 'matplotlib', 'flax', 'PIL', 'tyro'}"
    code = f"import sys; from cnn_jax.__main__ import main; main(); assert not {heavy} & set(sys.modules)"
    shown = run_code(code, "--help")
    assert shown.returncode == 0, shown.stderr
    for verb, line in VERBS.items():
        assert re.search(rf"^ +{verb} +{re.escape(line)}$", shown.stdout, re.MULTILINE)
    assert list(VERBS) == [
        "evaluate",
        "predict",
        "committee",
        "compare",
        "models",
        "data",
        "weights",
        "optimizer-paths",
        "results",
    ]


DATA = ("prepare", "list", "show", "export")
SUBVERBS = (
    *(("data", verb) for verb in DATA),
    *(("weights", verb) for verb in ("list", "export")),
    *(("results", verb) for verb in ("collect", "table", "readme")),
)


@pytest.mark.parametrize("verbs", [*((verb,) for verb in VERBS), *SUBVERBS], ids=" ".join)
def test_help_of_a_verb_imports_no_jax(verbs):
    code = "import sys; from cnn_jax.__main__ import main\ntry: main()\nfinally: assert 'jax' not in sys.modules"
    shown = run_code(code, *verbs, "--help")
    assert shown.returncode == 0 and f"python -m cnn_jax {' '.join(verbs)}" in shown.stdout, shown.stderr


CLOSED = [
    ["cnn_jax", "--help"],
    *(["cnn_jax", verb, "--help"] for verb in VERBS),
    ["experiments.digits_lenet5", "--help"],
    ["experiments.cifar10_speedrun", "--help"],
    ["cnn_jax", "results", "table", "SHORT"],
]


@pytest.mark.parametrize("module", CLOSED, ids=" ".join)
def test_a_closed_pipe_ends_a_command_quietly(module, tmp_path):
    short = tmp_path / "short.csv"
    write_rows(short, [])
    command = [sys.executable, "-m", *(str(short) if word == "SHORT" else word for word in module)]
    ours, theirs = os.pipe()
    os.close(ours)  # as `head` does once it has seen enough
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert done.stderr == "" and done.returncode in (0, 1, 141), "argparse may exit with 0, rich with 1"


def test_a_closed_pipe_under_a_table_ends_a_command_quietly():
    code = "from cnn_jax.commands import output, parser; parser.guard(lambda: output.console().print('row'))"
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_pipe_for_errors_ends_a_command_quietly():
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([sys.executable, "-m", "cnn_jax", "modles"], stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert done.returncode == 141


# Code that waits for a signal while a command works, and while Python shuts down.
MOMENTS = {
    "work": "guard(lambda: (print('ready', flush=True), time.sleep(30)))",
    "shutdown": "atexit.register(lambda: (print('ready', flush=True), time.sleep(30))); guard(lambda: None)",
    "failure": "atexit.register(lambda: (print('ready', flush=True), time.sleep(30))); guard(lambda: open('/nowhere'))",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_a_command_with_130_at_any_moment(moment, number):
    code = f"import atexit, time; from cnn_jax.commands.parser import guard; {MOMENTS[moment]}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and said.splitlines()[-1] == "interrupted" and "Traceback" not in said, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("module", ["cnn_jax", "experiments.digits_lenet5"])
def test_a_signal_while_a_command_is_imported_ends_it_with_130(module, number, tmp_path):
    # The command's first import of argparse stands for any moment of its start.
    (tmp_path / "argparse.py").write_text("import time; print('ready', flush=True); time.sleep(30)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", module, "--help"], env=environment, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and said == "interrupted\n"


def test_a_signal_while_the_report_is_written_ends_with_130_and_the_command_goes_on(tmp_path):
    code = (
        "import sys, time; from cnn_jax.commands import experiment as cli; from experiments import digits_lenet5 as e\n"
        "from cnn_jax.training import outcome\n"
        "def slow(*a, **k): print('ready', flush=True); time.sleep(30)\n"
        "outcome.write_report = slow\n"
        "cli.run(e.CONFIG, e.__doc__)"
    )
    flags = ["--model", "softmax_regression", "--steps", "1", "--workdir", str(tmp_path / "run"), "--logger", "csv"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, *flags], **pipes) as process:
        assert process.stdout is not None and "ready\n" in iter(process.stdout.readline, "")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and said == "interrupted\n"
    command = [sys.executable, "-m", "experiments.digits_lenet5", *flags]
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert (tmp_path / "run" / "summary.json").is_file()


def test_an_unknown_verb_is_answered_with_the_nearest():
    refused = subprocess.run([sys.executable, "-m", "cnn_jax", "evalute"], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("error: ") and "perhaps you meant evaluate" in refused.stderr


def test_the_console_script_is_the_module():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, attribute = project["scripts"]["cnn_jax"].partition(":")
    assert getattr(importlib.import_module(module), attribute) is cnn_jax.__main__.main


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("RUN --splitt=test", "unknown option --splitt; perhaps you meant --split"),
        ("RUN --nothing=3", "unknown option --nothing; drop it"),
        ("RUN --split tset", "--split is tset: it must be test or train"),
        ("RUN --channels 2", "--channels is 2: it must be 1 or 3"),
        ("RUN --split", "--split has no value: add one"),
        ("RUN --views", "--views has no value: add one"),
        ("RUN --top x", "--top is x: it must be a whole number of at least 1"),
        ("RUN --size 1.5", "--size is 1.5: it must be a whole number"),
        ("RUN --rate x", "--rate is x: it must be a number"),
        ("RUN --s 1", "--s is ambiguous: write one of --split, --size"),
        ("RUN --all=3", "--all takes no value: drop 3"),
        ("", "missing RUN"),
        ("RUN drw", "there is no drw: choose draw or list"),
        ("RUN draw --outptu f", "unknown option --outptu; perhaps you meant --output"),
        ("RUN draw more", "unexpected argument more; drop it"),
    ],
)
def test_small_commands_answer_a_mistake_in_the_same_way(argv, said):
    parser = ArgumentParser(prog="program")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--split", choices=("train", "test"))
    parser.add_argument("--channels", type=int, choices=(1, 3))
    parser.add_argument("--views", nargs="+")
    parser.add_argument("--top", type=positive)
    parser.add_argument("--size", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--all", action="store_true")
    actions = parser.add_subparsers(dest="action")
    actions.add_parser("draw").add_argument("--output")
    actions.add_parser("list")
    with pytest.raises(UserError) as error:
        parser.parse_args(argv.split())
    assert str(error.value).startswith(f"{said} (see program") and str(error.value).endswith(" --help)")


def test_help_and_mistakes_import_no_jax_and_exit_with_0_and_2():
    code = (
        "import sys; from cnn_jax.commands import experiment as cli; from experiments import digits_lenet5 as e;\n"
        "try: cli.run(e.CONFIG, e.__doc__)\n"
        "finally: assert not {'jax', 'flax', 'grain', 'tensorflow_datasets'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "--learning-rate" in shown.stdout and "LeNet-5" in shown.stdout, shown.stderr
    refused = run_code(code, "--sed", "1")
    assert refused.returncode == 2 and "--sed" in refused.stderr and "Traceback" not in refused.stderr
    refused = run_code(code, "--seed", "-1")
    assert refused.returncode == 2 and refused.stderr == "error: --seed is -1: it must be 0 or more\n"
    plain = os.environ | {"PYTHONIOENCODING": "ascii"}
    refused = run_code(code, "--batch-size", "x", env=plain)
    assert refused.returncode == 2 and "--batch-size" in refused.stderr, refused.stderr


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("Unable to allocate 3 TiB")])
def test_too_little_memory_is_told_in_one_line(error, capsys):
    def main():
        print("…")
        raise error

    with pytest.raises(SystemExit) as stop:
        guard(main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert said.startswith("error: not enough memory (") and said.endswith(": lower --image-size or --batch-size\n")


def test_a_run_imports_no_pytorch_and_leaves_it_to_others(tmp_path):
    (tmp_path / "torch.py").write_text("print('imported')")
    code = "import cnn_jax.training.loggers.tensorboard; print('then'); import torch"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["then", "imported"], done.stderr


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_a_bar_and_a_pipe_gets_lines(terminal, tmp_path):
    argv = ["--model", "softmax_regression", "--epochs", "2", "--workdir", str(tmp_path / "run")]
    ours, theirs = pty.openpty() if terminal else os.pipe()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-m", "experiments.digits_lenet5", *argv]
    with subprocess.Popen(command, stdout=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # reading a closed terminal raises
            while more := os.read(ours, 4096):
                shown += more
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 0
    assert ("images/s" in text and "\x1b[" in text and "epoch   2/2 " in text) if terminal else "\x1b" not in text
    assert terminal or text.count("validation loss") == 2
