"""Preparing TFDS sets without TensorFlow, from archives that the test makes itself in the original formats."""

import gzip
import io
import struct
import subprocess
import sys
import tarfile
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from cnn_jax.data import Splits, default_splits, materialize, open_source
from cnn_jax.data import __main__ as command_line
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
    """Writes CIFAR-10's archive with 3 images a batch; returns {part: (images, labels)}."""
    generator = np.random.default_rng(1)
    images, labels = generator.integers(0, 256, (18, 32, 32, 3), np.uint8), np.arange(18, dtype=np.uint8) % 10
    names = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        contents = {"batches.meta.txt": "\n".join(CIFAR_NAMES).encode()}
        for k, name in enumerate(names):
            rows = slice(3 * k, 3 * k + 3)
            planes = images[rows].transpose(0, 3, 1, 2).reshape(3, -1)  # red, then green, then blue
            contents[name] = np.concatenate([labels[rows, None], planes], 1).tobytes()
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {"train": (images[:15], labels[:15]), "test": (images[15:], labels[15:])}


# Runs `prepare` in a process of its own, having told TFDS of the small archives' sums and of MNIST's small size.
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
from cnn_jax.data.__main__ import main
main(["prepare", name, "--data-dir", data_dir, "--manual-dir", manual_dir])
main(["prepare", name, "--data-dir", data_dir])  # there already: nothing to download
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
        read_images, read_labels = materialize(source)
        expected = sorted((label, image.tobytes()) for image, label in zip(images, labels.tolist()))
        assert sorted((label, image.tobytes()) for image, label in zip(read_images, read_labels.tolist())) == expected
    if name == "cifar10":
        assert source.class_names == tuple(CIFAR_NAMES)


def test_archives_that_are_not_the_original_are_refused(tmp_path):
    write_mnist(tmp_path)
    with pytest.raises(UserError, match="not the original") as caught:
        prepare("mnist", str(tmp_path / "data"), str(tmp_path))
    assert "-ubyte.gz" in str(caught.value) and "\n" not in str(caught.value)


def test_without_network_the_files_to_fetch_are_listed(tmp_path, monkeypatch):
    from requests import ConnectionError
    from tensorflow_datasets.core.download import downloader

    def refuse(*_):
        raise ConnectionError("no network")

    monkeypatch.setattr(downloader._Downloader, "_sync_download", refuse)
    with pytest.raises(UserError) as caught:
        prepare("mnist", str(tmp_path))
    message = str(caught.value)
    for file in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        assert f"{MNIST_URL}{file}-ubyte.gz" in message
    assert f"prepare mnist --data-dir {tmp_path} --manual-dir FOLDER" in message and "\n" not in message


def test_bad_requests(tmp_path):
    with pytest.raises(UserError, match="perhaps you meant mnist"):
        prepare("mnits", str(tmp_path))
    with pytest.raises(UserError, match="no preparing"):
        prepare("digits", str(tmp_path))
    with pytest.raises(UserError, match="not a folder"):
        prepare("mnist", str(tmp_path), str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="ILSVRC2012_img_train.tar"):
        prepare("imagenet2012", str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--data-dir"):
        prepare("mnist", str(tmp_path / "file"))


def store(folder, name, features, examples):
    """Writes a set of one's own in TFDS format; `examples` are encoded images and labels, by split."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_builders import adhoc_builder

    no_tensorflow = SimpleNamespace(data=SimpleNamespace(Dataset=()))  # it asks whether examples are a tf.data.Dataset
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
    with pytest.raises(UserError, match="--image-size"):
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
    with pytest.raises(UserError, match="train split"):
        default_splits("untrained", str(tmp_path))


def test_sets_that_are_not_for_classification_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    kinds = {"image": tfds.features.Image(shape=(2, 2, 1)), "age": tfds.features.Scalar(np.int64)}
    store(tmp_path, "ages", kinds, {"train": [{"image": png(2, 2), "age": 3}]})
    with pytest.raises(UserError, match="age, image; expected one image and one class label"):
        open_source("ages", "train", data_dir=str(tmp_path))


def test_sets_in_another_file_format_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    kinds = {"image": tfds.features.Image(shape=(2, 2, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
    store(tmp_path, "old", kinds, {"train": [{"image": png(2, 2), "label": 0}]})
    info = tmp_path / "old" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="expected array_record.*prepare old") as caught:
        open_source("old", "train", data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_list_and_show(tmp_path, capsys):
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").write_text("{}")
    command_line.main(["list", "--data-dir", str(tmp_path)])
    assert "mnist:3.0.1" in capsys.readouterr().out
    for dataset in ("digits", "synthetic:300x200x3:2", "synthetic:8x8x2:2:5"):
        command_line.main(["show", dataset, "--split", "test", "--output", str(tmp_path / "grid.png")])
        with Image.open(tmp_path / "grid.png") as grid:
            assert grid.size == (512, 608)
    with pytest.raises(UserError, match="--output"):
        command_line.main(["show", "digits", "--output", str(tmp_path / "grid.what")])
