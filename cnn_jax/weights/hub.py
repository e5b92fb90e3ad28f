"""Downloads published weights: timm's from the Hugging Face hub (extra `hub`), torchvision's over plain HTTPS.

Offline, it fails at once, and the error says where to place files by hand.
"""

import hashlib
import importlib
import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cnn_jax.errors import UserError
from cnn_jax.storage.cache import cache_folder
from cnn_jax.weights.catalog import TorchvisionFile

WEIGHTS = "model.safetensors"
OLD_WEIGHTS = "pytorch_model.bin"  # the only one that timm's `save_for_hf` writes by default
CONFIG = "config.json"
_SECONDS = 10.0  # timeout
_CHUNK = 1 << 20


class HubFiles(NamedTuple):
    """A model on the hub: its weights and the contents of config.json."""

    weights: Path
    config: dict[str, Any]


def hand_folder(name: str) -> Path:
    """Returns the folder searched for the weights `name` before downloading: $CNN_JAX_CACHE/weights/NAME."""
    return cache_folder() / "weights" / name


def hub_files(name: str) -> HubFiles:
    """Returns config.json and model.safetensors of a repository: placed by hand, cached or downloaded.

    Args:
        name: OWNER/REPOSITORY, such as "timm/resnet50.a1_in1k", optionally with "@" and a commit, tag or branch.

    Raises:
        UserError: `huggingface_hub` is not installed, there is no network, or the repository or file does not exist.
    """
    config = _hub_file(name, CONFIG)
    return HubFiles(_hub_file(name, WEIGHTS), read_config(config))


def read_config(path: Path) -> dict[str, Any]:
    """Returns a timm model's config.json.

    Raises:
        UserError: the file is missing or something else.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config["architecture"], str) and isinstance(config["pretrained_cfg"], dict):
            return config
        raise TypeError("architecture or pretrained_cfg has the wrong type")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not the config.json of a timm model ({error}): name a timm model, whose config has "
            "architecture and pretrained_cfg"
        ) from error


def _hub_file(name: str, file: str) -> Path:
    by_hand = hand_folder(name) / file
    if by_hand.is_file():
        return by_hand
    repository, _, revision = name.partition("@")
    url = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{file}"
    other_way = f"download {url} to {by_hand} by hand ({CONFIG} and {WEIGHTS} both), or give a local file"
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise UserError(
            f"there is no file or folder {name}, and the hub needs the package huggingface_hub: "
            f"pip install 'cnn_jax[hub]', {other_way}"
        ) from error
    where: dict[str, Any] = {"repo_id": repository, "filename": file, "revision": revision or None}
    try:
        kept = hub.try_to_load_from_cache(**where)
        if isinstance(kept, str):
            return Path(kept)
        # Asking for the file at once would retry for half a minute without a network; this request is not retried.
        hub.get_hf_file_metadata(hub.hf_hub_url(**where), timeout=_SECONDS)
        return Path(hub.hf_hub_download(**where))
    except Exception as error:  # from the library, its HTTP client or the disk
        raise UserError(
            f"there is no file or folder {name}, and it cannot be downloaded from the hub ({_reason(error)}): "
            f"check the name and the network, {other_way}"
        ) from error


def torchvision_file(name: str, entry: TorchvisionFile) -> Path:
    """Returns a torchvision weights file: placed by hand, cached, or downloaded and verified.

    Args:
        name: the NAME in "torchvision/NAME", for messages.
        entry: the file.

    Raises:
        UserError: there is no network, or the checksum does not match the file name.
    """
    path = hand_folder("torchvision") / entry.file
    if path.is_file():
        return path
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            for chunk in _download(entry.url):
                digest.update(chunk)
                file.write(chunk)
        expected = entry.file.rpartition("-")[2].partition(".")[0]
        if not digest.hexdigest().startswith(expected):
            raise OSError(f"its SHA-256 begins with {digest.hexdigest()[:8]} instead of {expected}")
        os.replace(partial, path)
    except OSError as error:  # network errors are OSErrors, too
        raise UserError(
            f"torchvision/{name} cannot be downloaded ({_reason(error)}): check the network, download "
            f"{entry.url} to {path} by hand, or give a local file"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _download(url: str) -> Iterator[bytes]:
    request = urllib.request.Request(url, headers={"User-Agent": "cnn_jax"})
    with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
        megabytes = int(answer.headers.get("Content-Length", 0)) / 1e6
        print(f"downloading {url} ({megabytes:.0f} MB)", file=sys.stderr)
        while chunk := answer.read(_CHUNK):
            yield chunk


def _reason(error: BaseException) -> str:
    text = str(getattr(error, "reason", error)).strip()  # urllib's errors have a reason
    return (text.partition("\n")[0] or type(error).__name__).rstrip(".")
