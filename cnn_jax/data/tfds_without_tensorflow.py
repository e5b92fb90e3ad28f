"""Lets TFDS prepare image sets without TensorFlow.

TFDS reads array_record without TensorFlow, but preparing a set uses it in two places (as of 4.9.10, see
tensorflow/datasets#11058): `tf.image.encode_png` and `encode_jpeg` for images given as arrays, and `tf.io.gfile`, on a
local disk equivalent to `open`, `glob` and the like, to unpack, read and shuffle archives. `allowed` temporarily
substitutes Pillow and the standard library. If TensorFlow can be imported, it does nothing.
"""

import contextlib
import glob
import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

_GFILE = SimpleNamespace(
    GFile=open, exists=os.path.exists, glob=glob.glob, isdir=os.path.isdir, listdir=os.listdir, walk=os.walk
)
_TENSORFLOW = SimpleNamespace(io=SimpleNamespace(gfile=_GFILE), compat=SimpleNamespace(as_text=os.fsdecode))


@contextlib.contextmanager
def allowed(builder: Any) -> Iterator[None]:
    """Context in which `builder.download_and_prepare(file_format="array_record")` needs no TensorFlow."""
    if importlib.util.find_spec("tensorflow") is not None:
        yield
        return
    from tensorflow_datasets.core import shuffle
    from tensorflow_datasets.core.download import extractor
    from tensorflow_datasets.core.features import image_feature

    users = {sys.modules[kind.__module__] for kind in type(builder).__mro__} | {extractor, shuffle}
    with contextlib.ExitStack() as patches:  # `mock.patch.object` is setattr, undone at the end
        patches.enter_context(mock.patch.object(image_feature._ImageEncoder, "_encode_image", _encode_image))
        for module in users:
            if hasattr(module, "tf"):
                patches.enter_context(mock.patch.object(module, "tf", _TENSORFLOW))
        yield


def _encode_image(encoder: Any, image: np.ndarray) -> bytes:
    """Replaces `_ImageEncoder._encode_image`: encodes uint8 or uint16 HxWxC as a PNG or JPEG file."""
    from tensorflow_datasets.core.features import image_feature

    image_feature._validate_np_array(image, shape=encoder.shape, dtype=encoder.np_dtype)
    grey = image.shape[-1] == 1
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image))
    picture.save(buffer, format=encoder.encoding_format, quality=95)  # TensorFlow's JPEG quality; PNG has none
    return buffer.getvalue()
