"""The networks of `experiments.mnist_records`: their parameters, counted by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.inspect.summary import count_parameters
from cnn_jax.models.named import make_model, variable_shapes
from experiments.mnist_records import CONFIG, PRESETS, SharedCnn

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        # Filters without bias, and two numbers per map in each of five normalisations.
        ("smallest", 9 * 16 + 9 * 16 * 16 + 5 * 2 * 16 + 17 * 10),
        # 28 → 26 → 24 → 12 → 10 → 8 → 4 → 2.
        ("single", 9 * (32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128) + 2 * (32 + 32 + 64 + 64 + 128) + 513 * 10),
    ],
)
def test_parameters(preset, parameters):
    model = PRESETS[preset].model
    params = variable_shapes(make_model(model.model, 10, args=model.model_args), (28, 28, 1))["params"]
    assert count_parameters(params) == parameters


def test_the_committee_is_seven_of_the_single_network():
    assert PRESETS["committee"] == CONFIG.override(members=7) and PRESETS["single"] == CONFIG


def test_all_four_later_layers_use_the_shared_filters():
    model, x = SharedCnn(width=4), jax.random.normal(jax.random.key(1), (2, 12, 12, 1))
    variables: Any = model.init(jax.random.key(0), x, train=False)

    def maps(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def normed(x):  # statistics and scales as initialised
        return jax.nn.relu(x / np.sqrt(1 + 1e-5, dtype=np.float32))

    params = variables["params"]
    y = normed(maps(x, params["first"]["kernel"]))
    for _ in range(2):
        batch, height, width, channels = y.shape
        y = y.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
        y = normed(maps(normed(maps(y, params["shared"]["kernel"])), params["shared"]["kernel"]))
    expected = y.mean(axis=(1, 2)) @ params["output"]["kernel"] + params["output"]["bias"][None]
    logits: Any = model.apply(variables, x, train=False)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert jnp.abs(expected).max() > 0.01
