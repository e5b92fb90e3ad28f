"""Runs the examples of the documentation: `python -m tests.run_docs [PAGE …]`.

Every fenced bash, console or python block in docs/*.md that directly follows a line `<!-- run -->` is run. The first
page, docs/README.md, trains the run that the others use; then each page runs in a copy of its folder, two at a time.
Bash blocks run one command at a time, as do console blocks (the lines after `$ `); a python block runs as one script.
docs/tutorial.py and docs/notebooks/*.py run as notebooks. Stops at the first failure and prints its whole output.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FIRST = "README.md"  # trains the run that the other pages use
MARK = "<!-- run -->"
LIMIT = 300  # seconds per command
PAGES_AT_ONCE = 2  # starting Python and tracing keep one core busy, not two

# Plots are drawn in the notebook's own process, without a display.
NOTEBOOK = """
import sys, jupytext, nbclient
notebook = jupytext.read(sys.argv[1])
notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
nbclient.NotebookClient(notebook, timeout=300).execute()
shown = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
assert shown, "the notebook shows no picture"
"""


class Command(NamedTuple):
    """Something to run: its place in the docs, how it is printed, and its argv."""

    place: str
    said: str
    arguments: list[str]


def main(names: list[str]) -> None:
    """Runs the first page and the named ones, or everything; exits with code 1 at the first failure."""
    first, *others = [page for page in all_pages() if not names or page.name in (FIRST, *names)]
    notebooks = [DOCS / "tutorial.py", *sorted((DOCS / "notebooks").glob("*.py"))]
    parts = {page.name: list(page_commands(page)) for page in others}
    for notebook in notebooks:
        if not names or notebook.name in names:
            arguments = [sys.executable, "-c", NOTEBOOK, str(notebook)]
            parts[notebook.name] = [Command(notebook.name, "as a notebook", arguments)]
    if unknown := set(names) - {*parts, first.name}:
        fail(f"{', '.join(sorted(unknown))}: name pages of {DOCS} or its notebooks")
    opening, start = list(page_commands(first)), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="run-docs-") as top:
        environment, ground = surroundings(Path(top)), Path(top) / FIRST
        ground.mkdir()
        run_all(opening, ground, environment)

        def run_part(name: str) -> None:
            folder = Path(top) / name
            shutil.copytree(ground, folder)
            run_all(parts[name], folder, environment)

        with ThreadPoolExecutor(PAGES_AT_ONCE) as pool:
            running = [pool.submit(run_part, name) for name in sorted(parts, key=lambda name: -len(parts[name]))]
            wait(running, return_when=FIRST_EXCEPTION)
            pool.shutdown(cancel_futures=True)
            for part in running:
                if not part.cancelled():
                    part.result()
    print(f"{time.perf_counter() - start:6.1f} s  {len(opening) + sum(map(len, parts.values()))} commands", flush=True)


def all_pages() -> list[Path]:
    """Returns docs/README.md, the pages it links to, in that order, then any others."""
    index = DOCS / FIRST
    linked = [DOCS / name for name in re.findall(r"\]\(([\w-]+\.md)\)", index.read_text())]
    return list(dict.fromkeys([index, *linked, *sorted(DOCS.glob("*.md"))]))


def page_commands(page: Path) -> Iterator[Command]:
    """Yields the commands in the marked blocks of a page."""
    lines = page.read_text().split("\n")
    for number, line in enumerate(lines):
        if line.strip() != MARK:
            continue
        fence = re.fullmatch(r"```(bash|console|python)", lines[number + 1])
        if fence is None:
            fail(f"{page.name}:{number + 2}: {MARK} is not followed by a block of bash, console or python")
        end = lines.index("```", number + 2)
        block = lines[number + 2 : end]
        if fence[1] == "python":
            said = next((text for text in block if text and not text.startswith(("import ", "from "))), block[0])
            yield Command(f"{page.name}:{number + 3}", f"python: {said}", [sys.executable, "-c", "\n".join(block)])
            continue
        if fence[1] == "console":
            block = [text.removeprefix("$ ") if text.startswith("$ ") else "" for text in block]
        for first, text in shell_commands(block):
            yield Command(f"{page.name}:{number + 3 + first}", text, ["bash", "-euo", "pipefail", "-c", text])


def shell_commands(block: list[str]) -> Iterator[tuple[int, str]]:
    """Yields (line, command) for each complete bash command.

    >>> list(shell_commands(["# two", "for i in 1 2; do", "  echo $i", "done", "", "ls \\\\", "  -l"]))
    [(1, 'for i in 1 2; do\\n  echo $i\\ndone'), (5, 'ls \\\\\\n  -l')]
    """
    first, parts = 0, []
    for number, line in enumerate(block):
        if not parts:
            if not line.strip() or line.startswith("#"):
                continue
            first = number
        parts.append(line)
        text = "\n".join(parts)
        if not line.endswith("\\") and subprocess.run(["bash", "-n", "-c", text], capture_output=True).returncode == 0:
            yield first, text
            parts = []
    if parts:
        yield first, "\n".join(parts)  # incomplete: bash reports the error


def surroundings(folder: Path) -> dict[str, str]:
    """Environment of the commands: this Python, this checkout, nothing written outside `folder`."""
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    environment.setdefault("CNN_JAX_CACHE", str(folder / "cache"))
    environment.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiled in two thirds of the time
    (folder / "scratch").mkdir()
    for name in ("IPYTHONDIR", "MPLCONFIGDIR", "TMPDIR"):
        environment[name] = str(folder / "scratch")
    return environment


def run_all(commands: Sequence[Command], folder: Path, environment: dict[str, str]) -> None:
    for command in commands:
        run(command, folder, environment)


def run(command: Command, folder: Path, environment: dict[str, str]) -> None:
    """Runs a command and prints how long it took; exits (or ends its thread) if it fails."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command.arguments,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
        )
        problem, output = done.returncode and f"exit code {done.returncode}", done.stdout
    except subprocess.TimeoutExpired as expired:
        problem, output = f"more than {LIMIT} s", expired.stdout or b""
    print(f"{time.perf_counter() - start:6.1f} s  {command.place:18} {' '.join(command.said.split())}", flush=True)
    if problem:
        fail(f"{command.place}: {problem}\n{command.said}\n{output.decode(errors='replace')}")


def fail(message: str) -> NoReturn:
    print(f"FAILED {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
