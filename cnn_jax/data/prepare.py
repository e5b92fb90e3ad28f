"""Downloads a TFDS set, or takes local archives, and prepares it as array_record without TensorFlow.

TFDS downloads to `downloads`, and complete archives stay there for the next attempt. When a call fails, everything else
that it created is removed.
"""

import contextlib
import io
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from cnn_jax.data import tfds_without_tensorflow
from cnn_jax.data.tfds_source import absent, cannot_prepare, data_folder, find_prepared, listed
from cnn_jax.errors import UserError

_RETRIES = 2  # TFDS's default of ten takes minutes to report that there is no network


@dataclass(frozen=True)
class _Job:
    """One preparation: data set, target folder, archives. `begun` maps each URL to the folder it is downloaded into."""

    name: str
    builder: Any
    folder: Path
    manual_dir: Path | None
    begun: dict[str, Path] = field(default_factory=dict)

    def command(self, manual_dir: str) -> str:
        """The command that prepares the set from the archives in `manual_dir`."""
        return (
            f"python -m cnn_jax data prepare {self.name} --data-dir {shlex.quote(str(self.folder))} "
            f"--manual-dir {manual_dir}"
        )


def prepare(name: str, data_dir: str | None = None, manual_dir: str | None = None) -> Path:
    """Prepares the TFDS set `name` unless it is prepared already.

    Args:
      name: such as `mnist`, `cifar10` or `emnist/letters`.
      data_dir: folder of prepared sets; None for $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      manual_dir: folder with the original archives under their original names, used instead of downloads. TFDS verifies
        their checksums.

    Returns:
      The folder of the prepared set.

    Raises:
      UserError: the name is unknown, a download fails (the message lists the files to fetch by hand), an archive is not
        the original, or the disk cannot be written.
    """
    if name.partition(":")[0] in ("digits", "xo", "synthetic", "folder"):
        raise UserError(f"{name} needs no preparation: use it as it is")
    archives = None if manual_dir is None else Path(manual_dir).expanduser()
    if archives is not None and not archives.is_dir():
        raise UserError(f"`manual_dir` {manual_dir} is not a folder: set it to the one that holds the archives")
    folder = data_folder(data_dir)
    if prepared := find_prepared(name, folder):
        return Path(prepared.data_path)
    job = _Job(name, _builder(name, folder), folder, archives)
    try:
        _download_and_prepare(job)
    except Exception as error:
        explained = _explain(error, job)
        if explained is None:
            raise
        raise explained from error
    return Path(job.builder.data_path)


def _builder(name: str, folder: Path) -> Any:
    """Returns TFDS's builder of the set.

    Raises:
      UserError: TFDS has no such set, config or version.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    try:
        return tfds.builder(name, data_dir=str(folder), file_format="array_record")
    except DatasetNotFoundError as error:
        raise absent(name, folder) from error
    except (AssertionError, ValueError) as error:
        raise cannot_prepare(name) from error


def _download_and_prepare(job: _Job) -> None:
    """Runs TFDS silently, and leaves no half-written files even on failure."""
    import tensorflow_datasets as tfds

    with (
        _no_empty_folders(job),
        _scratch(job.folder) as unpacked,
        _silence(f"preparing {job.name} in {job.folder} …"),
        tfds_without_tensorflow.allowed(job.builder),
        _workers(job.begun),
    ):
        config = tfds.download.DownloadConfig(
            manual_dir=None if job.manual_dir is None else str(job.manual_dir),
            extract_dir=str(unpacked),
            try_download_gcs=False,
        )
        job.builder.download_and_prepare(download_config=config, file_format="array_record")


@contextlib.contextmanager
def _no_empty_folders(job: _Job) -> Iterator[None]:
    """On failure, removes the folders that preparing made and left empty (of the set, of downloads, the data folder
    itself) and TFDS's note of the set's default config.
    """
    of_set = [path for path in Path(job.builder.data_path).parents if job.folder in path.parents]  # deepest first
    note, downloads = job.folder / job.builder.name / ".config", job.folder / "downloads"
    places = [note, *of_set, downloads / job.builder.name, downloads, job.folder, *job.folder.absolute().parents]
    made = [path for path in places if not path.exists()]
    try:
        yield
    except BaseException:
        if note in made:
            shutil.rmtree(note, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):  # missing, or not empty
                path.rmdir()
        raise


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Temporary folder for unpacked archives, on the disk of the prepared sets because they may be large."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".unpacked-", dir=folder))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _silence(message: str) -> Iterator[None]:
    """Suppresses TFDS's output and, on a terminal, shows `message` meanwhile."""
    from rich.console import Console
    from rich.markup import escape
    from tensorflow_datasets.core.utils import tqdm_utils

    with (
        Console(stderr=True).status(escape(message)),  # first, because it redirects stdout, too
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(tqdm_utils, "_active", False),  # progress bars
    ):
        yield


@contextlib.contextmanager
def _workers(begun: dict[str, Path]) -> Iterator[None]:
    """Gives TFDS its own threads to download and unpack; at the end waits for them and removes unfinished downloads.

    TFDS itself returns as soon as the first of many downloads fails, and leaves the others running.
    """
    from tensorflow_datasets.core.download import download_manager, downloader, extractor

    class Downloader(downloader._Downloader):
        def download(self, url: str, destination_path: Any, verify: bool = True) -> Any:
            begun[url] = Path(destination_path)
            return super().download(url, destination_path, verify)

    workers: list[Any] = []

    def make(kind: Any, **options: Any) -> Any:
        workers.append(kind(**options))
        return workers[-1]

    with (
        mock.patch.object(download_manager, "get_downloader", lambda **options: make(Downloader, **options)),
        mock.patch.object(extractor, "get_extractor", lambda: make(extractor._Extractor)),
        mock.patch.object(downloader, "MAX_RETRIES", _RETRIES),
    ):
        try:
            yield
        finally:
            for worker in workers:
                # Unpacking waits for copies queued in the same threads; if they were cancelled, it would never end.
                worker._executor.shutdown(wait=True, cancel_futures=isinstance(worker, Downloader))
            for unfinished in begun.values():
                shutil.rmtree(unfinished, ignore_errors=True)


def _explain(error: Exception, job: _Job) -> UserError | None:
    """Translates an error of TFDS into a UserError; None if it is a bug of ours."""
    from urllib.error import URLError

    from requests import RequestException
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.extractor import ExtractError
    from tensorflow_datasets.core.download.util import DownloadError

    if isinstance(error, ExtractError) and getattr(error.__cause__, "errno", None):
        return _explain_disk(error.__cause__, job)
    match error:
        case RequestException() | URLError() | DownloadError():
            return _by_hand(job, f"cannot be downloaded ({type(error).__name__})")
        case NonMatchingChecksumError():
            return _not_the_original(str(error), job)
        case ExtractError():
            return _by_hand(job, f"cannot be unpacked ({str(error).splitlines()[0]})")
        case AssertionError() | FileNotFoundError() if job.builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            return _manual_only(job)
        case ModuleNotFoundError():
            return UserError(
                f"preparing {job.name} needs {error.name}: run pip install {error.name}, then the same command again"
            )
        case OSError():
            return _explain_disk(error, job)
    return None


def _by_hand(job: _Job, problem: str) -> UserError:
    """Lists the original files, or those that the user's folder lacks, and the command that uses them."""
    known = job.builder.url_infos or {}
    names = {url: getattr(known.get(url), "filename", None) or url.rpartition("/")[2] for url in job.begun or known}
    urls = listed(names) or job.builder.info.homepage
    if job.manual_dir is None:
        return UserError(
            f"{job.name} {problem}: fetch {urls} by hand into a folder, keep the file names, and run "
            f"{job.command('FOLDER')}"
        )
    lacking = [name for name in names.values() if not (job.manual_dir / name).exists()]
    state = f"lacks {listed(lacking)}, and" if lacking else "has all files, but"
    return UserError(
        f"`manual_dir` {job.manual_dir} {state} {job.name} {problem}: fetch {urls} into that folder, keep the file "
        "names, and run the same command again"
    )


def _not_the_original(message: str, job: _Job) -> UserError:
    """Names the file whose checksum is wrong: a local one, or a download, already deleted."""
    found = re.match(r"Artifact (?P<url>\S+), downloaded to (?P<path>.+), has wrong checksum", message)
    url, path = (found["url"], found["path"]) if found else ("one of its files", message.splitlines()[0])
    given = f"the download of {url}" if url in job.begun else path
    return UserError(
        f"{given} for {job.name} is not the original file: fetch {url} by hand into a folder, keep the file name, and "
        f"run {job.command('FOLDER')}"
    )


def _manual_only(job: _Job) -> UserError:
    """Error for a set whose files must be fetched by hand, usually because of a licence."""
    problem = f"`manual_dir` {job.manual_dir} lacks" if job.manual_dir else "this set needs"
    instructions = " ".join(job.builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split()).rstrip(".")
    place = "FOLDER" if job.manual_dir is None else shlex.quote(str(job.manual_dir))
    return UserError(
        f"{problem} files of {job.name} that must be downloaded by hand: {instructions}; then run {job.command(place)}"
    )


def _explain_disk(error: BaseException | None, job: _Job) -> UserError:
    return UserError(
        f"{job.name} cannot be prepared in {job.folder} ({error}): make room, or choose another `data_dir`"
    )
