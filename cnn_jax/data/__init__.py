"""Data sets: `open_source` turns a name into random-access examples, `make_pipeline` turns those into batches.

A data set is named by one string:

  mnist, cifar10, svhn_cropped:3.1.0, emnist/letters   any image classification set of TFDS, prepared on disk
  folder:PATH                                          a folder of images, one sub-folder per class
  digits                                               1,797 real handwritten digits; ships with the package
  xo, xo:rotation=30,noise=0.1                         drawn letters X and O; see `procedural`
  package.module:attribute                             your own arrays or sources; see `own`
  synthetic:32x32x3:10, synthetic:32x32x3:10:50000     random images of 10 learnable classes
"""

from typing import Literal

from cnn_jax.data import digits, folder, own, procedural, tfds_source
from cnn_jax.data.channels import KINDS, with_channels
from cnn_jax.data.decoded import materialize
from cnn_jax.data.image_file import Levels
from cnn_jax.data.memory import check_memory
from cnn_jax.data.order import batch_indices
from cnn_jax.data.pipeline import Pipeline, make_pipeline
from cnn_jax.data.preprocess import Preprocess
from cnn_jax.data.sources import ArraySource, Example, Source, Splits, parse_split
from cnn_jax.errors import UserError
from cnn_jax.storage.file_names import readable

__all__ = [
    "ArraySource",
    "Example",
    "Pipeline",
    "Preprocess",
    "Source",
    "Splits",
    "batch_indices",
    "default_splits",
    "make_pipeline",
    "materialize",
    "open_source",
    "parse_split",
]


def open_source(
    dataset: str,
    split: str,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad_images: bool = False,
    levels: Levels | Literal["in use"] | None = "in use",
    group_by: str | None = None,
) -> Source:
    """Opens one split of a data set; images are not read yet.

    Args:
      dataset: name, in one of the forms listed at the top of this module.
      split: TFDS split syntax, such as `train[:90%]`.
      data_dir: folder of TFDS sets; None for $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      image_size: height and width in pixels to resize images to; None keeps the data set's own.
      channels: 1 for grey images, 3 for colour ones; None keeps the data set's own.
      skip_bad_images: leave out unreadable files of a `folder:` instead of stopping at them.
      levels: values of more than 8 bits of a `folder:` that become 0 and 255, see `Preprocess`; default: the range in
        use over its training images.
      group_by: regular expression on file names of a `folder:` whose groups are not divided, see `folder`.

    Raises:
      UserError: unknown data set or split, images of different sizes without `image_size`, images that cannot be
        converted to `channels`, or a wrong `group_by`.

    >>> source = open_source("digits", "train[:100]")
    >>> len(source), source.image_shape, source.class_names[3]
    (100, (8, 8, 1), '3')
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"`image_size` is {image_size}: set it to at least 1 pixel")
    if image_size is not None:
        check_memory(12 * image_size**2, f"an image of {image_size} x {image_size} pixels", "lower `image_size`")
    if channels is not None and channels not in KINDS:
        raise UserError(f"`channels` is {channels}: set it to 1 (grey) or 3 (colour)")
    family, _, argument = dataset.partition(":")
    _check_grouping(family, group_by)
    match family:
        case "digits":
            source = digits.open_digits(argument, split, image_size)
        case "folder":
            source = folder.open_folder(argument, split, image_size, skip_bad_images, channels, levels, group_by)
        case "xo":
            source = procedural.open_xo(argument, split, image_size)
        case "synthetic":
            source = procedural.open_synthetic(argument, split, image_size)
        case _ if own.is_attribute(dataset):
            source = own.open_own(dataset, split, image_size)
        case _:
            source = tfds_source.open_tfds(dataset, split, data_dir, image_size)
    return source if channels is None else with_channels(source, channels)


def default_splits(dataset: str, data_dir: str | None = None, group_by: str | None = None) -> Splits:
    """Returns the splits of `dataset` for training, model selection and the final result.

    Raises:
      UserError: unknown data set, too few images for the splits, or a wrong `group_by`, see `open_source`.

    >>> default_splits("digits")
    Splits(train='train', validation='validation', test='test')
    """
    family, _, argument = dataset.partition(":")
    _check_grouping(family, group_by)
    match family:
        case "digits" | "xo" | "synthetic":
            return Splits()
        case "folder":
            return folder.default_splits(argument, group_by)
        case _ if own.is_attribute(dataset):
            return own.default_splits(dataset)
        case _:
            return tfds_source.default_splits(dataset, data_dir)


def _check_grouping(family: str, group_by: str | None) -> None:
    if group_by is not None and family != "folder":
        raise UserError(
            f"`group_by` is '{readable(group_by)}', but only the files of folder:PATH can be grouped: drop it"
        )
