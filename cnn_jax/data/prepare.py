"""Downloading a TFDS set and preparing it as array_record, with no TensorFlow; or the same from archives at hand."""

from pathlib import Path
from typing import Any
from unittest import mock

from cnn_jax.data import tfds_without_tensorflow
from cnn_jax.data.tfds_source import absent, data_folder, find_prepared
from cnn_jax.errors import UserError

_RETRIES = 2  # TFDS's own ten take minutes to say that there is no network


def prepare(name: str, data_dir: str | None = None, manual_dir: str | None = None) -> Path:
    """Prepares the set `name` of TFDS, unless it is there already.

    Args:
      name: such as `mnist`, `cifar10` or `emnist/letters`.
      data_dir: where sets are kept; else TFDS_DATA_DIR, else ~/tensorflow_datasets.
      manual_dir: a folder with the original archives under their original names. They are checked against the sums
        TFDS knows and used in place of downloads.

    Returns:
      The folder of the prepared set.

    Raises:
      UserError: when the name is unknown, a download fails (the message lists the files to fetch by hand), an archive
        is not the original, or the disk cannot be written.
    """
    import tensorflow_datasets as tfds
    from requests import RequestException
    from tensorflow_datasets.core.download import downloader
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.extractor import ExtractError
    from tensorflow_datasets.core.download.util import DownloadError
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    if name.partition(":")[0] in ("digits", "xo", "synthetic", "folder"):
        raise UserError(f"given {name}, which needs no preparing; expected a TFDS set; use it as it is")
    if manual_dir is not None and not Path(manual_dir).expanduser().is_dir():
        raise UserError(f"given --manual-dir {manual_dir}, which is not a folder; expected one with the archives")
    folder = data_folder(data_dir)
    if prepared := find_prepared(name, folder):
        return Path(prepared.data_path)
    try:
        builder = tfds.builder(name, data_dir=str(folder), file_format="array_record")
    except (DatasetNotFoundError, ValueError) as error:
        raise absent(name, folder) from error
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    try:
        with tfds_without_tensorflow.allowed(builder), mock.patch.object(downloader, "MAX_RETRIES", _RETRIES):
            builder.download_and_prepare(download_config=config, file_format="array_record")
    except (RequestException, DownloadError) as error:
        raise _by_hand(name, builder, folder, f"which cannot be downloaded ({type(error).__name__})") from error
    except NonMatchingChecksumError as error:
        artifact = str(error).partition(", has wrong checksum")[0]
        raise _by_hand(name, builder, folder, f"whose archive is not the original one ({artifact})") from error
    except ExtractError as error:
        raise _by_hand(name, builder, folder, f"whose archive cannot be unpacked ({error})") from error
    except AssertionError as error:
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise
        instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise UserError(
            f"given {name}, which has to be downloaded by hand; expected: {instructions}; then run: "
            f"python -m cnn_jax.data prepare {name} --data-dir {folder} --manual-dir FOLDER"
        ) from error
    except ModuleNotFoundError as error:
        raise UserError(
            f"given {name}, whose preparation needs {error.name}; expected that installed; "
            f"run: pip install {error.name}, then the same command again"
        ) from error
    except OSError as error:
        raise UserError(
            f"given {name}, which cannot be prepared in {folder} ({error}); expected a disk with room to write on; "
            "choose another --data-dir"
        ) from error
    return Path(builder.data_path)


def _by_hand(name: str, builder: Any, folder: Path, problem: str) -> UserError:
    """The error that lists the original files and the command that takes them from a folder."""
    urls = list(builder.url_infos or {})
    listed = " and ".join(urls[:4]) + (f" and {len(urls) - 4} more" if len(urls) > 4 else "")
    return UserError(
        f"given {name}, {problem}; expected {listed or builder.info.homepage}; fetch by hand into a folder, "
        f"keep the file names, and run: python -m cnn_jax.data prepare {name} --data-dir {folder} --manual-dir FOLDER"
    )
