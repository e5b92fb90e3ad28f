"""Preparing TFDS data sets without TensorFlow, from small archives written here in the original formats."""

import errno
import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import time
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from cnn_jax.commands import data as command_line
from cnn_jax.data import Splits, default_splits, image_file, materialize, open_source
from cnn_jax.data.prepare import prepare
from cnn_jax.errors import UserError

MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def write_mnist(folder, seed=0):
    """Writes the four files of MNIST with 12 training and 5 test images; returns {part: (images, labels)}."""
    generator = np.random.default_rng(seed)
    parts = {}
    for part, prefix, count in (("train", "train", 12), ("test", "t10k", 5)):
        images = generator.integers(0, 256, (count, 28, 28, 1), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        header = struct.pack(">4i", 2051, count, 28, 28), struct.pack(">2i", 2049, count)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header[0] + images.tobytes()))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header[1] + labels.tobytes()))
        parts[part] = images, labels
    return parts


def write_cifar10(folder):
    """Writes CIFAR-10's archive with 3 images per batch file; returns {part: (images, labels)}."""
    generator = np.random.default_rng(1)
    images, labels = generator.integers(0, 256, (18, 32, 32, 3), np.uint8), np.arange(18, dtype=np.uint8) % 10
    names = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        contents = {"batches.meta.txt": "\n".join(CIFAR_NAMES).encode()}
        for k, name in enumerate(names):
            rows = slice(3 * k, 3 * k + 3)
            planes = images[rows].transpose(0, 3, 1, 2).reshape(3, -1)  # red plane, green plane, blue plane
            contents[name] = np.concatenate([labels[rows, None], planes], 1).tobytes()
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {"train": (images[:15], labels[:15]), "test": (images[15:], labels[15:])}


# Runs `prepare` in a separate process, with TFDS expecting the small archives' checksums and MNIST's small size.
PREPARE = """
import sys
from pathlib import Path
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.image_classification import cifar, mnist
name, url, data_dir, manual_dir = sys.argv[1:]
builder = {"mnist": mnist.MNIST, "cifar10": cifar.Cifar10}[name]
mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = 12, 5
for path in Path(manual_dir).glob("*.gz"):
    full = url if url.endswith("gz") else url + path.name
    checksums.get_all_url_infos()[full] = builder.url_infos[full] = checksums.compute_url_info(path)
from cnn_jax.commands.data import main
main(["prepare", name, "--data-dir", data_dir, "--manual-dir", manual_dir])
main(["prepare", name, "--data-dir", data_dir])  # already prepared: nothing to download
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
"""


@pytest.mark.parametrize(
    ("name", "url", "write"), [("mnist", MNIST_URL, write_mnist), ("cifar10", CIFAR_URL, write_cifar10)]
)
def test_prepared_from_archives_and_read_back_exactly(tmp_path, monkeypatch, name, url, write):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "archives").mkdir()
    parts = write(tmp_path / "archives")
    folders = [str(tmp_path / "data"), str(tmp_path / "archives")]
    done = subprocess.run([sys.executable, "-c", PREPARE, name, url, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"prepared in {tmp_path / 'data' / name}") == 2
    for part, (images, labels) in parts.items():
        source = open_source(name, part, data_dir=folders[0])
        read_images, read_labels = materialize(source).values()
        expected = sorted((label, image.tobytes()) for image, label in zip(images, labels.tolist()))
        assert sorted((label, image.tobytes()) for image, label in zip(read_images, read_labels.tolist())) == expected
    if name == "cifar10":
        assert source.class_names == tuple(CIFAR_NAMES)


def contents(folder):
    """Returns {path: its bytes, or None for a folder} for everything in the folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def offline(monkeypatch):
    """Disables the network; downloads whose file name is in the returned set write part of the file first."""
    from requests import ConnectionError
    from tensorflow_datasets.core.download import downloader

    reached = set()

    def break_off(_, url, folder, verify=True):
        if url.rpartition("/")[2] in reached:
            time.sleep(0.2)  # by now the other downloads have failed and TFDS has given up
            (folder / "part").write_bytes(b"half a fi")
        raise ConnectionError("no network")

    monkeypatch.setattr(downloader._Downloader, "_sync_download", break_off)
    return reached


def refused(*arguments):
    """Calls `prepare`, expects a one-line error, and returns it."""
    with pytest.raises(UserError) as caught:
        prepare(*map(str, arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_archives_that_are_not_the_original_are_refused(tmp_path):
    write_mnist(tmp_path)
    before = contents(tmp_path)
    message = refused("mnist", tmp_path / "data", tmp_path)
    assert message.startswith(f"{tmp_path}/") and "-ubyte.gz for mnist is not the original" in message
    assert contents(tmp_path) == before


def test_without_network_the_files_to_fetch_are_listed(tmp_path, offline):
    message = refused("mnist", tmp_path / "my sets")
    for file in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        assert f"{MNIST_URL}{file}-ubyte.gz" in message
    assert f"prepare mnist --data-dir '{tmp_path}/my sets' --manual-dir FOLDER" in message


def test_without_network_the_command_says_one_line_and_leaves_nothing(tmp_path):
    command = [
        sys.executable,
        "-m",
        "cnn_jax",
        "data",
        "prepare",
        "mnist",
        "--data-dir",
        str(tmp_path / "new" / "sets"),
    ]
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")} | {"no_proxy": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | nowhere)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: mnist cannot be downloaded (ProxyError)")
    assert list(tmp_path.iterdir()) == []


def test_tfds_is_silent_at_a_terminal_too(tmp_path, offline, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes Rich behave as on a terminal
    refused("mnist", tmp_path)
    said = capsys.readouterr()
    assert said.out == "" and "preparing mnist" in said.err
    assert not any(word in said.err for word in ("Downloading", "Dl ", "Extraction"))


@pytest.mark.parametrize("name", ["mnist", "emnist/letters"])
def test_only_what_a_failed_call_made_is_removed(tmp_path, offline, name):
    offline |= {"train-images-idx3-ubyte.gz", "gzip.zip"}
    for earlier in ("downloads/mnist/a.gz.tmp.1/a.gz", "mnist/2.0.0/dataset_info.json", "emnist/byclass/other"):
        (tmp_path / earlier).parent.mkdir(parents=True)
        (tmp_path / earlier).write_text("made earlier, or by another process")
    (tmp_path / "downloads" / "extracted").mkdir()
    before = contents(tmp_path)
    refused(name, tmp_path)
    assert contents(tmp_path) == before
    refused(name, tmp_path / "new")
    assert contents(tmp_path) == before


def test_whole_downloads_are_kept_for_the_next_attempt(tmp_path, offline, monkeypatch):
    from tensorflow_datasets.core.download import checksums, downloader

    def arrive(self, url, folder, verify=True):
        if not url.endswith("t10k-labels-idx1-ubyte.gz"):
            return break_off(self, url, folder, verify)
        time.sleep(0.2)  # by now the other downloads have failed and TFDS has given up
        self._pbar_url.update(1)
        (folder / "labels.gz").write_bytes(b"all of it")
        return downloader.DownloadResult(folder / "labels.gz", checksums.compute_url_info(folder / "labels.gz"))

    break_off = downloader._Downloader._sync_download
    monkeypatch.setattr(downloader._Downloader, "_sync_download", arrive)
    (tmp_path / "whole").write_bytes(b"all of it")
    known = checksums.compute_url_info(tmp_path / "whole")
    monkeypatch.setitem(checksums.get_all_url_infos(), f"{MNIST_URL}t10k-labels-idx1-ubyte.gz", known)
    monkeypatch.setitem(mnist_builder().url_infos, f"{MNIST_URL}t10k-labels-idx1-ubyte.gz", known)
    refused("mnist", tmp_path / "data")
    (archive,) = (path for path in contents(tmp_path / "data").items() if path[1] == b"all of it")
    assert archive[0].parent == tmp_path / "data" / "downloads" / "mnist"
    assert not list((tmp_path / "data").rglob("*.tmp.*")) and not (tmp_path / "data" / "mnist").exists()


def mnist_builder():
    from tensorflow_datasets.image_classification import mnist

    return mnist.MNIST


def test_a_folder_without_all_archives_is_named_with_those_it_lacks(tmp_path, offline, monkeypatch):
    from tensorflow_datasets.core.download import checksums

    archives = tmp_path / "archives"
    archives.mkdir()
    names = [f"{part}-ubyte.gz" for part in ("t10k-images-idx3", "train-images-idx3", "train-labels-idx1")]
    message = refused("mnist", tmp_path / "data", archives)
    assert f"`manual_dir` {archives} lacks t10k-images-idx3-ubyte.gz, t10k-labels" in message and "mnist" in message
    assert all(f"{MNIST_URL}{name}" in message for name in names)

    there = archives / "t10k-labels-idx1-ubyte.gz"
    there.write_bytes(b"labels")
    known = checksums.compute_url_info(there)
    monkeypatch.setitem(checksums.get_all_url_infos(), f"{MNIST_URL}{there.name}", known)
    monkeypatch.setitem(mnist_builder().url_infos, f"{MNIST_URL}{there.name}", known)
    message = refused("mnist", tmp_path / "data", archives)
    assert f"{archives} lacks {', '.join(names)}, and mnist cannot" in message and there.name not in message
    assert [path.name for path in tmp_path.iterdir()] == ["archives"] and list(archives.iterdir()) == [there]


def test_sets_that_must_be_downloaded_by_hand(tmp_path):
    (tmp_path / "empty").mkdir()
    message = refused("imagenet2012", tmp_path / "data", tmp_path / "empty")
    assert f"`manual_dir` {tmp_path / 'empty'} lacks files of imagenet2012" in message
    assert "ILSVRC2012_img_train.tar" in message and "ILSVRC2012_img_val.tar" in message
    message = refused("imagenet2012", tmp_path / "data")
    assert "ILSVRC2012_img_train.tar" in message and f"--data-dir {tmp_path / 'data'} --manual-dir FOLDER" in message
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_full_disk_is_not_reported_as_a_damaged_archive(tmp_path, monkeypatch):
    from tensorflow_datasets.core.download import checksums, extractor

    write_mnist(tmp_path)
    for path in tmp_path.glob("*.gz"):
        known = checksums.compute_url_info(path)
        monkeypatch.setitem(checksums.get_all_url_infos(), MNIST_URL + path.name, known)
        monkeypatch.setitem(mnist_builder().url_infos, MNIST_URL + path.name, known)

    def fill_up(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(extractor, "_copy", fill_up)
    before = contents(tmp_path)
    message = refused("mnist", tmp_path / "data", tmp_path)
    assert f"cannot be prepared in {tmp_path / 'data'} ([Errno 28] No space left on device)" in message
    assert contents(tmp_path) == before


def test_bad_requests(tmp_path):
    assert "perhaps you meant mnist" in refused("mnits", tmp_path)
    assert "digits needs no preparation" in refused("digits", tmp_path)
    assert "not a folder" in refused("mnist", tmp_path, tmp_path / "nowhere")
    assert "choose mnist, version 3.0.1" in refused("mnist:9.9.9", tmp_path)
    with pytest.raises(UserError, match="^TFDS cannot prepare data set 'mnist:9.9.9': choose mnist, version 3.0.1"):
        open_source("mnist:9.9.9", "train", data_dir=str(tmp_path))  # must not suggest preparing it
    assert "choose emnist/byclass, emnist/bymerge, " in refused("emnist/nope", tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert "choose another `data_dir`" in refused("mnist", tmp_path / "file")


def store(folder, name, features, examples):
    """Writes a custom data set in TFDS format; `examples` maps splits to encoded images and labels."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_builders import adhoc_builder

    no_tensorflow = SimpleNamespace(data=SimpleNamespace(Dataset=()))  # TFDS checks for a tf.data.Dataset
    with mock.patch.object(adhoc_builder, "tf", no_tensorflow):
        adhoc_builder.store_as_tfds_dataset(
            name,
            "1.0.0",
            tfds.features.FeaturesDict(features),
            {part: list(enumerate(rows)) for part, rows in examples.items()},
            data_dir=folder,
            file_format="array_record",
        )


def png(*shape):
    buffer = io.BytesIO()
    Image.fromarray(np.full(shape, 7, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def test_own_tfds_set_of_mixed_sizes(tmp_path):
    import tensorflow_datasets as tfds

    kinds = {"photo": tfds.features.Image(), "kind": tfds.features.ClassLabel(names=["cat", "dog"])}
    train = [{"photo": png(5 + i, 9, 3), "kind": i % 2} for i in range(10)]
    store(tmp_path, "pets", kinds, {"train": train, "test": train[:2]})
    with pytest.raises(UserError, match="set `image_size`"):
        open_source("pets", "train", data_dir=str(tmp_path))
    source = open_source("pets:1.0.0", "train[:5]", data_dir=str(tmp_path), image_size=6)
    assert source.class_names == ("cat", "dog") and len(source) == 5
    assert (source[0]["image"] == 7).all() and source[0]["image"].shape == (6, 6, 3)
    assert default_splits("pets", str(tmp_path)) == Splits("train[:90%]", "train[90%:]", "test")


def test_own_tfds_set_default_splits(tmp_path):
    import tensorflow_datasets as tfds

    kinds = {"image": tfds.features.Image(shape=(2, 2, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
    rows = [{"image": png(2, 2), "label": 0}]
    expected = {
        ("train",): Splits("train[:80%]", "train[80%:90%]", "train[90%:]"),
        ("train", "validation"): Splits("train[:90%]", "train[90%:]", "validation"),
        ("train", "validation", "test"): Splits(),
    }
    for number, (parts, splits) in enumerate(expected.items()):
        store(tmp_path, f"own{number}", kinds, {part: rows for part in parts})
        assert default_splits(f"own{number}", str(tmp_path)) == splits
    store(tmp_path, "untrained", kinds, {"test": rows})
    with pytest.raises(UserError, match="no train split, only test"):
        default_splits("untrained", str(tmp_path))


def test_sets_that_are_not_for_classification_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    kinds = {"image": tfds.features.Image(shape=(2, 2, 1)), "age": tfds.features.Scalar(np.int64)}
    store(tmp_path, "ages", kinds, {"train": [{"image": png(2, 2), "age": 3}]})
    with pytest.raises(UserError, match="age, image, not one image and one class label"):
        open_source("ages", "train", data_dir=str(tmp_path))


def test_sets_of_floats_are_refused_and_16_bits_are_said_to_be_reduced(tmp_path, capsys):
    import tensorflow_datasets as tfds

    plain = {"image": tfds.features.Image(shape=(2, 2, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
    store(tmp_path, "floats", plain, {"train": [{"image": png(2, 2), "label": 0}]})
    described = tmp_path / "floats" / "1.0.0" / "features.json"  # preparing floats needs TensorFlow
    described.write_text(described.read_text().replace('"dtype": "uint8"', '"dtype": "float32"'))
    assert "float32" in described.read_text()
    with pytest.raises(UserError, match="floats has images of floats, which are not supported"):
        open_source("floats", "train", data_dir=str(tmp_path))
    deep = {
        "image": tfds.features.Image(shape=(2, 2, 1), dtype=np.uint16),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2), 257 * 9, np.uint16)).save(buffer, "png")
    store(tmp_path, "deep", deep, {"train": [{"image": buffer.getvalue(), "label": 0}]})
    image_file._warn_of_levels.cache_clear()
    assert (open_source("deep", "train", data_dir=str(tmp_path))[0]["image"] == 9).all()
    assert "more than 8 bits are read as 0 (black) to 65535 (white)" in capsys.readouterr().err


def test_sets_in_another_file_format_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    kinds = {"image": tfds.features.Image(shape=(2, 2, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
    store(tmp_path, "old", kinds, {"train": [{"image": png(2, 2), "label": 0}]})
    info = tmp_path / "old" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="not array_record.*prepare old") as caught:
        open_source("old", "train", data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_list_and_show(tmp_path, capsys):
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").write_text("{}")
    command_line.main(["list", "--data-dir", str(tmp_path)])
    assert "mnist:3.0.1" in capsys.readouterr().out
    for dataset, examples in (("digits", 64), ("synthetic:300x200x3:2", 64), ("synthetic:8x8x2:2:20", 5)):
        command_line.main(["show", dataset, "--split", "test", "--output", str(tmp_path / "grid.png")])
        with Image.open(tmp_path / "grid.png") as grid:
            assert grid.size == (512, 608)
            cells = np.asarray(grid).reshape(8, 64 + 12, 8, 64, 3)
        for part in (cells[:, :64], cells[:, 64:]):  # the images and the class names below them
            filled = (part != 255).any((1, 3, 4)).ravel()
            assert filled[:examples].all() and not filled[examples:].any()
    with pytest.raises(UserError, match="--output"):
        command_line.main(["show", "digits", "--output", str(tmp_path / "grid.what")])


def test_exported_examples_are_read_back_exactly(tmp_path, capsys):
    command_line.main(["export", "digits", "--split", "train[:40]", "--output", str(tmp_path / "train")])
    assert f"40 images in {tmp_path / 'train'}" in capsys.readouterr().out
    digits, files = open_source("digits", "train[:40]"), open_source(f"folder:{tmp_path}", "train")
    assert files.class_names == digits.class_names
    pairs = [sorted((s[i]["label"], s[i]["image"].tobytes()) for i in range(len(s))) for s in (digits, files)]
    assert pairs[0] == pairs[1] and len(pairs[0]) == 40
    with pytest.raises(UserError, match="2 channels"):
        command_line.main(["export", "synthetic:4x4x2:2", "--output", str(tmp_path / "no")])
