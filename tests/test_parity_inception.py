"""GoogLeNet and Inception-v3 match torchvision's stage by stage, auxiliary heads included."""

import importlib
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util
from torch_nets import TOLERANCE, Case, compare, numpy_state, randomise, shapes, torchvision

from cnn_jax.data.preprocess import Preprocess
from cnn_jax.layers import BatchNorm, Conv
from cnn_jax.weights.convert import flattened_maps, from_torch, torch_name
from cnn_jax.weights.names import googlenet as googlenet_naming
from cnn_jax.weights.names import inception_v3 as inception_naming

# Not plain imports: the package re-exports functions of the same names.
googlenet = importlib.import_module("cnn_jax.models.googlenet")
inception_v3 = importlib.import_module("cnn_jax.models.inception_v3")

torch = pytest.importorskip("torch")
models: Any = torchvision().models


def their_googlenet() -> Any:
    return models.googlenet(weights=None, init_weights=False)


def their_inception() -> Any:
    return models.inception_v3(weights=None, init_weights=False)


INCEPTIONS = [f"inception{row}" for row in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
CASES = {
    "googlenet": Case(
        googlenet.googlenet_torchvision(),
        their_googlenet,
        googlenet_naming.torchvision,
        {
            "conv1": "conv1",
            "conv2": "conv3",
            **{f"pool{i}": f"maxpool{i}" for i in (1, 2, 3, 4)},
            **{name: name for name in INCEPTIONS},
            "pool": "avgpool",
        },
        image=(76, 90, 3),  # most pooling windows overhang at this size
    ),
    # These maps are too small for the auxiliary head; it is compared below.
    "inception_v3": Case(
        inception_v3.inception_v3(aux_heads=False),
        their_inception,
        inception_naming.torchvision,
        {
            **{name: inception_naming.torchvision(name) for name in ("conv1a", "conv2a", "conv2b", "conv3b", "conv4a")},
            "pool1": "maxpool1",
            "pool2": "maxpool2",
            **{name: name.replace("mixed", "Mixed_") for name in inception_v3.BLOCKS},
            "pool": "avgpool",
        },
        image=(96, 110, 3),
        ignore=("^AuxLogits",),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_same_logits_and_stages_as_torchvision(name):
    assert compare(CASES[name]).worst() < TOLERANCE


@pytest.mark.parametrize(
    ("model", "net", "names", "size"),
    [
        (googlenet.googlenet_torchvision(), their_googlenet, googlenet_naming.torchvision, 224),
        (inception_v3.inception_v3(), their_inception, inception_naming.torchvision, 299),
    ],
    ids=["googlenet", "inception_v3"],
)
def test_every_name_is_torchvisions(model, net, names, size):
    with torch.device("meta"):
        theirs = {key for key in net().state_dict() if not key.endswith("num_batches_tracked")}
    ours = traverse_util.flatten_dict(shapes(model, (size, size, 3)), sep="/")
    assert {torch_name(path, names) for path in ours} == theirs


NORM = partial(BatchNorm, use_running_average=True, epsilon=1e-3)
GOOGLENET_HEAD = googlenet.AuxiliaryHead(1000, True, partial(googlenet.ConvUnit, conv=Conv, norm=NORM), nn.Dense, False)
INCEPTION_HEAD = inception_v3.AuxiliaryHead(1000, Conv, NORM, nn.Dense)


@pytest.mark.parametrize(
    ("head", "net", "ours", "theirs", "names", "maps"),
    [
        (GOOGLENET_HEAD, their_googlenet, "aux1", "aux1", googlenet_naming.torchvision, (14, 14, 512)),
        (GOOGLENET_HEAD, their_googlenet, "aux2", "aux2", googlenet_naming.torchvision, (3, 9, 528)),
        (INCEPTION_HEAD, their_inception, "aux", "AuxLogits", inception_naming.torchvision, (17, 20, 768)),
    ],
    ids=["googlenet 1", "googlenet 2", "inception_v3"],
)
def test_same_side_heads_as_torchvision(head, net, ours, theirs, names, maps):
    side = randomise(net().get_submodule(theirs))
    x = np.random.default_rng(1).normal(size=(2, *maps)).astype(np.float32)
    like = {kind: {ours: tree} for kind, tree in jax.eval_shape(head.init, jax.random.key(0), x).items()}
    state = {f"{theirs}.{name}": array for name, array in numpy_state(side).items()}
    flattened = {"aux1/fc": (128, 4, 4), "aux2/fc": (128, 4, 4)}
    variables = from_torch(state, like, names, flattened=flattened)
    logits = jax.jit(head.apply)({kind: tree[ours] for kind, tree in variables.items()}, x)
    with torch.no_grad():
        expected = side(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE * np.abs(expected).max())


def test_flattened_maps_of_googlenets_side_heads_are_found():
    found = flattened_maps(googlenet.googlenet_torchvision(), (64, 64, 3))
    assert found == {"aux1/fc": (128, 4, 4), "aux2/fc": (128, 4, 4)}


@pytest.mark.parametrize(
    ("net", "naming"),
    [(their_googlenet, googlenet_naming), (their_inception, inception_naming)],
    ids=["googlenet", "inception_v3"],
)
def test_preprocessing_matches_the_public_weights(net, naming):
    with torch.device("meta"):
        theirs = net()
    theirs.transform_input = True  # torchvision's setting with pretrained weights
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), np.uint8)
    usual = Preprocess((5, 6, 3), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).normalize(pixels)
    seen = theirs._transform_input(torch.from_numpy(usual).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    ours = Preprocess((5, 6, 3), naming.MEAN, naming.STD).normalize(pixels)
    np.testing.assert_allclose(ours, seen, atol=1e-6)
