"""ConvNeXt matches the published network in its maps, drop-path rates, block and initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_checks import drawn, drop_paths, evaluated, initialised, shapes, some_images, trained, volumes

from cnn_jax.errors import UserError
from cnn_jax.layers import initializer
from cnn_jax.models import convnext
from cnn_jax.models.convnext import ConvNeXt, ConvNeXtBlock

pytestmark = pytest.mark.usefixtures("one_device")

TINY = ConvNeXt(3, blocks=(1, 2), widths=(4, 8), drop_path=0.6)


@pytest.mark.parametrize(("shape", "sides"), [((224, 224, 3), (56, 28, 14, 7)), ((70, 70, 1), (17, 8, 4, 2))])
def test_maps_are_those_of_the_paper_also_for_other_images(shape, sides):
    seen = volumes(convnext.convnext_tiny(5), *shape)
    ends = ("stage1_block3", "stage2_block3", "stage3_block9", "stage4_block3")
    assert [seen[name] for name in ends] == [(s, s, w) for s, w in zip(sides, (96, 192, 384, 768))]
    assert seen["stem"] == (sides[0], sides[0], 96) and seen["stage2_conv"] == (sides[1], sides[1], 192)
    assert seen["pool"] == (768,)


def test_too_small_image_is_refused():
    shapes(convnext.convnext_tiny(), 32, 32, 3)
    with pytest.raises(UserError, match=r"ConvNeXt\.stage4_conv: a 1x1 map is too small"):
        shapes(convnext.convnext_tiny(), 31, 31, 3)


def test_drop_path_grows_linearly_to_the_last_block():
    rates = list(drop_paths(convnext.convnext_tiny(), 32, 32, 3).values())
    assert rates == pytest.approx(list(np.linspace(0, 0.1, 18)))
    assert max(drop_paths(convnext.convnext_base(), 32, 32, 3).values()) == pytest.approx(0.5)
    shapes(ConvNeXt(blocks=(1,), widths=(8,)), 32, 32, 3)  # a single block has rate 0


def test_drop_path_acts_in_training_only():
    variables, x = drawn(TINY, 16, 16, 3), some_images(8)
    (_, (one, _)), (_, (other, _)) = (trained(TINY, variables, x, seed) for seed in (0, 1))
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(evaluated(TINY, variables, x), evaluated(TINY.clone(drop_path=0.0), variables, x))


def test_block_by_hand():
    """One output pixel of a block, from the paper's formula."""
    block = ConvNeXtBlock(1.0, "gelu", initializer("lecun_normal"), 0.0, False, jnp.float32, jnp.float32)
    x = np.random.default_rng(0).normal(size=(1, 9, 9, 3)).astype(np.float32)
    params = jax.tree.map(
        lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: block.init(jax.random.key(0), x))["params"],
    )
    y = np.asarray(block.apply({"params": params}, x))  # type: ignore[arg-type]
    conv = np.einsum("hwc,hwc->c", x[0, 1:8, 1:8], params["conv"]["kernel"][:, :, 0]) + params["conv"]["bias"]
    z = (conv - conv.mean()) / np.sqrt(conv.var() + 1e-6) * params["norm"]["scale"] + params["norm"]["bias"]
    z = z @ params["fc1"]["kernel"] + params["fc1"]["bias"]
    z = z * (1 + np.asarray(jax.lax.erf(jnp.asarray(z / np.sqrt(2))))) / 2
    z = z @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    np.testing.assert_allclose(y[0, 4, 4], x[0, 4, 4] + params["layer_scale"] * z, rtol=1e-4, atol=1e-4)


def test_weights_start_as_the_authors():
    model = ConvNeXt(10, blocks=(1,), widths=(64,))
    params = initialised(model, 16, 16, 3)["params"]
    np.testing.assert_array_equal(params["stage1_block1"]["layer_scale"], np.full(64, np.float32(1e-6)))
    for name in ("fc1", "fc2"):
        kernel = np.asarray(params["stage1_block1"][name]["kernel"])
        assert kernel.std() == pytest.approx(0.02, rel=0.03) and np.abs(kernel).max() > 0.06  # not truncated at 2 std
        assert not np.any(params["stage1_block1"][name]["bias"])
