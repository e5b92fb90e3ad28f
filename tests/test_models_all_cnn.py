"""The All-CNNs have the published layers, no pooling but the final average, and learn."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from model_checks import drawn, shapes, some_images

from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import count_parameters, layer_table
from cnn_jax.models import all_cnn, stages
from cnn_jax.models.all_cnn import AllCnn, all_cnn_c

pytestmark = pytest.mark.usefixtures("one_device")

TINY = AllCnn(3, sizes=(3, 1), features=(6, 8))


def conv(size: int, inputs: int, filters: int) -> int:
    return size * size * inputs * filters + filters


LAST = conv(3, 192, 192) + conv(1, 192, 192) + conv(1, 192, 10)
COUNTS = {
    "all_cnn_a": conv(5, 3, 96) + conv(3, 96, 96) + conv(5, 96, 192) + conv(3, 192, 192) + LAST,
    "all_cnn_b": (
        conv(5, 3, 96)
        + conv(1, 96, 96)
        + conv(3, 96, 96)
        + conv(5, 96, 192)
        + conv(1, 192, 192)
        + conv(3, 192, 192)
        + LAST
    ),
    "all_cnn_c": conv(3, 3, 96) + 2 * conv(3, 96, 96) + conv(3, 96, 192) + 2 * conv(3, 192, 192) + LAST,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_counted_by_hand(name):
    model = getattr(all_cnn, name)()
    assert count_parameters(shapes(model, *model.input_shape)["params"]) == COUNTS[name]


def test_counts_are_those_of_the_documentation():
    assert COUNTS == {"all_cnn_a": 1_254_250, "all_cnn_b": 1_300_618, "all_cnn_c": 1_369_738}
    kernels = traverse_util.flatten_dict(shapes(all_cnn_c(), 32, 32, 3)["params"], sep="/")
    assert count_parameters([leaf for path, leaf in kernels.items() if path.endswith("kernel")]) == 1_368_480


def test_layers_of_all_cnn_c_are_the_published_ones():
    rows = [(row.name, row.output_shape) for row in layer_table(all_cnn_c(), (32, 32, 3))]
    assert rows == [
        ("drop0", (32, 32, 3)),
        ("conv1", (32, 32, 96)),
        ("conv2", (32, 32, 96)),
        ("conv3", (16, 16, 96)),
        ("drop1", (16, 16, 96)),
        ("conv4", (16, 16, 192)),
        ("conv5", (16, 16, 192)),
        ("conv6", (8, 8, 192)),
        ("drop2", (8, 8, 192)),
        ("conv7", (6, 6, 192)),
        ("conv8", (6, 6, 192)),
        ("output", (6, 6, 10)),
        ("pool", (10,)),
    ]


@pytest.mark.parametrize("name", COUNTS)
def test_nothing_is_pooled_but_the_last_maps(name):
    kinds = [row.kind for row in layer_table(getattr(all_cnn, name)(), (32, 32, 3))]
    assert set(kinds) == {"Dropout", "Conv", "GlobalAvgPool"}
    assert kinds[-1] == "GlobalAvgPool"


def test_logits_are_the_means_of_rectified_maps_of_each_class():
    x = some_images(size=12)
    logits, seen = stages(TINY, drawn(TINY, *x.shape[1:]), x)
    maps = np.asarray(seen["class_maps"])
    assert maps.shape == (4, 1, 1, 3)
    assert (maps >= 0).all()
    np.testing.assert_allclose(logits, maps.mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("name", COUNTS)
def test_other_images_channels_and_classes(name):
    model = getattr(all_cnn, name)(num_classes=7)
    x = jnp.zeros((2, 48, 40, 1))
    logits = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x, train=False)[0])
    assert logits.shape == (2, 7)
    parameters = (count_parameters(shapes(model, *size)["params"]) for size in ((48, 40, 1), (9, 9, 1)))
    assert len(set(parameters)) == 1
    with pytest.raises(UserError, match=r"AllCnn\.conv\d: a 2x2 map is too small"):
        shapes(model, 8, 8, 3)


def test_it_learns_to_tell_two_textures():
    size, key = 12, jax.random.key(0)
    stripes = jnp.tile(jnp.array([1.0, -1.0]), (size, size // 2)).reshape(1, size, size, 1)
    x = jnp.concatenate([jnp.tile(s, (8, 1, 1, 3)) for s in (stripes, stripes.swapaxes(1, 2))])
    x, labels = x + 0.3 * jax.random.normal(key, x.shape), jnp.arange(16) // 8

    def loss(params: Any, key: jax.Array) -> jax.Array:
        logits = TINY.apply({"params": params}, x, train=True, rngs={"dropout": key})
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))  # type: ignore[arg-type]

    @jax.jit
    def step(params: Any, key: jax.Array) -> Any:
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params, key))

    params = drawn(TINY, *x.shape[1:])["params"]
    for i in range(100):
        params = step(params, jax.random.fold_in(key, i))
    logits = np.asarray(TINY.apply({"params": params}, x, train=False))
    assert (logits.argmax(1) == labels).mean() > 0.9


def test_dropout_acts_on_the_image_and_after_each_stage_in_training_only():
    x = some_images(size=12)
    variables = drawn(TINY, *x.shape[1:])
    train = jax.jit(lambda seed: TINY.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}))
    assert not np.array_equal(train(0), train(1))
    TINY.apply(variables, x, train=False)  # needs no random key

    rates = {}

    def watch(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.Dropout):
            rates[context.module.name] = (context.module.rate, context.module.deterministic)
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        jax.eval_shape(lambda: TINY.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)}))
    assert rates == {"drop0": (0.2, False), "drop1": (0.5, False), "drop2": (0.5, False)}
