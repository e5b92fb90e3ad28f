"""Weights convert losslessly between PyTorch's layout and ours; mismatches are reported all at once."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cnn_jax.errors import UserError
from cnn_jax.models import build
from cnn_jax.models.resnet import ResNet
from cnn_jax.weights.convert import flattened_maps, from_torch, to_torch, torch_name
from cnn_jax.weights.naming import namings, plain, recognise

NUMBERS = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return NUMBERS.normal(size=shape).astype(np.float32)


def shapes(model: nn.Module, image: tuple[int, ...]) -> Any:
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image)), train=False))


def drawn(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: numbers(*leaf.shape), tree)


LIKE = {
    "params": {
        "conv": {"kernel": np.zeros((3, 5, 2, 4), np.float32), "bias": np.zeros(4, np.float32)},
        "norm": {"scale": np.zeros(4, np.float32), "bias": np.zeros(4, np.float32)},
        "block": {"layer_scale": np.zeros(4, np.float32)},
        "output": {"kernel": np.zeros((24, 7), np.float32)},
    },
    "batch_stats": {"norm": {"mean": np.zeros(4, np.float32), "var": np.zeros(4, np.float32)}},
}
STATE = {
    "conv.weight": numbers(4, 2, 3, 5),
    "conv.bias": numbers(4),
    "norm.weight": numbers(4),
    "norm.bias": numbers(4),
    "norm.running_mean": numbers(4),
    "norm.running_var": numbers(4),
    "norm.num_batches_tracked": np.array(17),
    "block.layer_scale": numbers(4, 1, 1),
    "output.weight": numbers(7, 24),
}
FLATTENED = {"output": (4, 2, 3)}


def converted(state: Any = STATE, **kwargs: Any) -> Any:
    return from_torch(state, LIKE, plain, **{"flattened": FLATTENED, **kwargs})


def message(state: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        converted(state, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_kind_of_leaf_by_hand():
    variables = converted()
    params, stats = variables["params"], variables["batch_stats"]
    assert params["conv"]["kernel"][2, 1, 0, 3] == STATE["conv.weight"][3, 0, 2, 1]
    np.testing.assert_array_equal(params["norm"]["scale"], STATE["norm.weight"])
    np.testing.assert_array_equal(stats["norm"]["mean"], STATE["norm.running_mean"])
    np.testing.assert_array_equal(stats["norm"]["var"], STATE["norm.running_var"])
    np.testing.assert_array_equal(params["block"]["layer_scale"], STATE["block.layer_scale"].ravel())
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, LIKE)


def test_dense_layer_reads_the_flattened_map_in_our_order():
    maps = numbers(2, 4, 2, 3)  # B, C, H, W
    theirs = maps.reshape(2, -1) @ STATE["output.weight"].T
    ours = maps.transpose(0, 2, 3, 1).reshape(2, -1) @ converted()["params"]["output"]["kernel"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    in_their_order = converted(flattened={})["params"]["output"]["kernel"]
    np.testing.assert_array_equal(in_their_order, STATE["output.weight"].T)


def test_to_torch_is_the_inverse():
    state = to_torch(converted(), plain, flattened=FLATTENED)
    assert set(state) == set(STATE) - {"norm.num_batches_tracked"}
    for name, array in state.items():
        np.testing.assert_array_equal(array, STATE[name])


def test_dense_layers_that_are_stored_as_convolutions():
    as_convolution = STATE["output.weight"].reshape(7, 4, 2, 3)
    variables = converted(STATE | {"output.weight": as_convolution})
    jax.tree.map(np.testing.assert_array_equal, variables, converted())


def test_half_precision_becomes_the_type_of_the_model():
    for dtype in (np.float16, jnp.bfloat16, np.float64):
        kernel = converted({n: a.astype(dtype) for n, a in STATE.items()})["params"]["conv"]["kernel"]
        assert kernel.dtype == np.float32
        np.testing.assert_allclose(kernel, STATE["conv.weight"].transpose(2, 3, 1, 0), rtol=1e-2)


def test_differences_of_both_trees_in_one_message():
    state = {name: array for name, array in STATE.items() if name != "conv.bias"}
    state |= {"stem.weight": numbers(2), "norm.bias": numbers(5), "norm.weight": np.full(4, np.nan)}
    said = message(state, given="odd.pth", wanted="weights of X")
    assert said.startswith("cannot use odd.pth as weights of X: ")
    assert "missing: conv.bias;" in said
    assert "extra: stem.weight;" in said
    assert "wrong shape: norm.bias (5,) instead of (4,);" in said
    assert "not finite: norm.weight;" in said


def test_same_number_of_weights_in_another_shape_is_refused():
    assert "conv.weight (4, 2, 5, 3)" in message(STATE | {"conv.weight": numbers(4, 2, 5, 3)})
    assert "output.weight (24, 7)" in message(STATE | {"output.weight": numbers(24, 7)})


def test_ignored_names_may_be_there_and_others_not():
    more = STATE | {"aux1.fc.weight": np.array([np.inf])}
    assert "extra: aux1.fc.weight" in message(more)
    jax.tree.map(np.testing.assert_array_equal, converted(more, ignore=["^aux"]), converted())
    # Arrays that the model has a place for are used even if `ignore` matches them.
    np.testing.assert_array_equal(converted(ignore=["conv"])["params"]["conv"]["bias"], STATE["conv.bias"])


def test_colliding_names_lose_no_array():
    deep = build("mobilenet_v2", args=["depth=2", "width=0.25"])
    like, naming = shapes(deep, (32, 32, 3)), namings(deep)["torchvision"]
    with pytest.raises(UserError, match="of runs/deep get the same name .*: set `names` to plain"):
        to_torch(drawn(like), naming.names, given="runs/deep")
    with pytest.raises(UserError, match="get the same name"):
        from_torch(STATE, like, naming.names)
    assert len(to_torch(drawn(like), plain)) == len(jax.tree.leaves(like))


def test_names_of_leaves():
    assert torch_name("params/a/b/kernel", plain) == "a.b.weight"
    assert torch_name("batch_stats/a/var", plain) == "a.running_var"
    assert torch_name("params/a/gamma", plain) == "a.gamma"


@pytest.mark.parametrize(
    ("name", "image", "maps"),
    [
        ("lenet5", (28, 28, 1), {"fc1": (16, 5, 5)}),
        ("softmax_regression", (8, 8, 1), {"output": (1, 8, 8)}),
        ("mlp", (28, 28, 3), {"fc1": (3, 28, 28)}),
        ("resnet20", (32, 32, 3), {}),
        ("kaggle_lenet", (28, 28, 1), None),
    ],
)
def test_flattened_maps_and_round_trip(name, image, maps):
    model = build(name)
    found = flattened_maps(model, image)
    if maps is not None:
        assert found == maps
    like = shapes(model, image)
    variables = drawn(like)
    for naming in namings(model).values():
        state = to_torch(variables, naming.names, flattened=found)
        again = from_torch(state, like, naming.names, flattened=found)
        jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_naming_is_recognised():
    model = ResNet(3, blocks=(1, 1), width=4, shortcut="B")
    like = shapes(model, (16, 16, 3))
    paths = list(traverse_util.flatten_dict(like, sep="/"))
    for naming in namings(model).values():
        state = to_torch(drawn(like), naming.names)
        assert recognise(model, paths, state) == naming
