"""Augmentations against their definitions, computed in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.data import augment as augmentations
from cnn_jax.data.augment import (
    AUGMENTATIONS,
    PER_IMAGE,
    color_jitter,
    cutmix,
    cutout,
    flip,
    mixup,
    pad_crop,
    pca_color,
)
from cnn_jax.data.warp import affine, affine_warp, elastic, random_resized_crop, warp
from cnn_jax.errors import UserError


def make_augment(specs, num_classes):
    """Returns a function that augments images and labels the way the classification task does."""
    whole = augmentations.make_augment(specs)

    def augment(key, images, labels, first_index=0):
        targets = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
        batch = whole(key, {"image": images, "target": targets}, first_index)
        return batch["image"], batch["target"]

    return augment


RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
KEYS_20 = jax.random.split(KEY, 20)
IMAGE_8x6x3 = RNG.random((8, 6, 3), np.float32)
SQUARE_7x7x1 = RNG.random((7, 7, 1), np.float32)
IMAGES_6x8x8x3 = RNG.integers(0, 256, (6, 8, 8, 3), np.uint8)
LABELS_6 = np.array([0, 1, 2, 3, 2, 1], np.int32)


def over_keys(function, image: np.ndarray, **arguments) -> np.ndarray:
    """Applies `function` to the image with twenty keys."""
    return np.asarray(jax.jit(jax.vmap(lambda key: function(key, jnp.asarray(image), **arguments)))(KEYS_20))


# Single images


def test_flip_gives_the_image_or_its_mirror():
    results = over_keys(flip, IMAGE_8x6x3)
    mirrored = [np.array_equal(result, IMAGE_8x6x3[:, ::-1]) for result in results]
    same = [np.array_equal(result, IMAGE_8x6x3) for result in results]
    assert all(np.logical_xor(mirrored, same))
    assert 4 <= sum(mirrored) <= 16
    np.testing.assert_array_equal(over_keys(flip, IMAGE_8x6x3, p=1.0)[0], IMAGE_8x6x3[:, ::-1])


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_pad_crop_is_a_window_of_the_padded_image(mode: str):
    padded = np.pad(IMAGE_8x6x3, ((2, 2), (2, 2), (0, 0)), mode="reflect" if mode == "reflect" else "constant")
    windows = {padded[i : i + 8, j : j + 6].tobytes(): (i, j) for i in range(5) for j in range(5)}
    places = {windows[result.tobytes()] for result in over_keys(pad_crop, IMAGE_8x6x3, padding=2, mode=mode)}
    assert len(places) > 5
    assert {i for i, _ in places} | {j for _, j in places} == set(range(5)), "every shift must occur"


def test_cutout_blackens_a_square():
    ones = np.ones((9, 9, 2), np.float32)
    for image in over_keys(cutout, ones, size=4):
        np.testing.assert_array_equal(image[..., 0], image[..., 1])
        rows, columns = np.nonzero(image[..., 0] == 0)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width, "not a rectangle"
        at_edge = {0, 8} & {rows.min(), rows.max()}, {0, 8} & {columns.min(), columns.max()}
        assert height == 4 or (at_edge[0] and 2 <= height < 4)
        assert width == 4 or (at_edge[1] and 2 <= width < 4)


def test_warp_interpolates_bilinearly_and_is_black_outside():
    rows, columns = RNG.uniform(-2, 9, (5, 4)), RNG.uniform(-2, 7, (5, 4))
    padded = np.pad(IMAGE_8x6x3, ((3, 3), (3, 3), (0, 0)))
    expected = np.zeros((5, 4, 3))
    for at in np.ndindex(5, 4):
        i, j = int(np.floor(rows[at])), int(np.floor(columns[at]))
        a, b = rows[at] - i, columns[at] - j
        near = padded[i + 3 : i + 5, j + 3 : j + 5]
        expected[at] = (1 - a) * ((1 - b) * near[0, 0] + b * near[0, 1]) + a * ((1 - b) * near[1, 0] + b * near[1, 1])
    actual = warp(jnp.asarray(IMAGE_8x6x3), jnp.asarray(rows, jnp.float32), jnp.asarray(columns, jnp.float32))
    np.testing.assert_allclose(actual, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("matrix", "shift", "expected"),
    [
        ([[0, 1], [-1, 0]], [0, 0], np.rot90(SQUARE_7x7x1)),  # 90° counter-clockwise
        ([[-1, 0], [0, 1]], [0, 0], SQUARE_7x7x1[:, ::-1]),
        ([[1, 0], [0, 1]], [2, -1], np.pad(SQUARE_7x7x1, ((0, 1), (2, 0), (0, 0)))[1:, :7]),  # 2 right, 1 up
    ],
    ids=["quarter_turn", "mirror", "shift"],
)
def test_affine_warp_moves_the_content(matrix: list, shift: list, expected: np.ndarray):
    actual = affine_warp(jnp.asarray(SQUARE_7x7x1), jnp.array(matrix, jnp.float32), jnp.array(shift, jnp.float32))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_affine_with_empty_ranges_is_the_identity():
    still = over_keys(affine, IMAGE_8x6x3, degrees=0.0, scale=(1.0, 1.0), translate=0.0, shear=0.0)
    np.testing.assert_allclose(still, np.broadcast_to(IMAGE_8x6x3, still.shape), atol=1e-6)


def moments(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroid (x, y) and covariance of the image's intensity."""
    y, x = np.indices(image.shape[:2])
    points, weights = np.stack([x.ravel(), y.ravel()]), image.ravel() / image.sum()
    return points @ weights, np.cov(points, aweights=weights, ddof=0)


def test_each_affine_range_controls_its_own_transform():
    """On a bright bar: its centroid gives the translation, its axis the rotation, its area the scale."""
    bar = np.zeros((41, 41, 1), np.float32)
    bar[19:22, 12:29] = 1.0
    none = {"degrees": 0.0, "scale": (1.0, 1.0), "translate": 0.0, "shear": 0.0}

    shifts = np.array([moments(i)[0] for i in over_keys(affine, bar, **{**none, "translate": 0.1})]) - 20
    assert (np.abs(shifts) < 4.11).all() and shifts.max() > 2 and shifts.min() < -2

    spread = [moments(i)[1] for i in over_keys(affine, bar, **{**none, "degrees": 30.0})]
    angles = np.degrees([0.5 * np.arctan2(2 * s[0, 1], s[0, 0] - s[1, 1]) for s in spread])
    assert (np.abs(angles) < 30.5).all() and angles.max() > 15 and angles.min() < -15

    zooms = np.sqrt(over_keys(affine, bar, **{**none, "scale": (0.8, 1.2)}).sum((1, 2, 3)) / bar.sum())
    assert ((zooms > 0.78) & (zooms < 1.22)).all() and zooms.max() > 1.1 and zooms.min() < 0.9

    upright = bar.transpose(1, 0, 2)
    spread = [moments(i)[1] for i in over_keys(affine, upright, **{**none, "shear": 30.0})]
    leans = np.degrees([np.arctan(s[0, 1] / s[1, 1]) for s in spread])
    assert (np.abs(leans) < 30.5).all() and leans.max() > 15 and leans.min() < -15


def test_elastic_without_strength_is_the_identity():
    still = over_keys(elastic, IMAGE_8x6x3, alpha=0.0)
    np.testing.assert_allclose(still, np.broadcast_to(IMAGE_8x6x3, still.shape), atol=1e-6)


def test_elastic_displaces_smoothly_by_the_stated_amount():
    """On the ramp x/W, the change in pixel values is the displacement."""
    size, alpha, sigma = 48, 20.0, 3.0
    ramp = np.broadcast_to(np.arange(size, dtype=np.float32)[None, :, None] / size, (size, size, 1))
    moved = (over_keys(elastic, ramp, alpha=alpha, sigma=sigma) - ramp)[:, 12:-12, 12:-12, 0] * size
    expected = alpha / (2 * np.sqrt(3 * np.pi) * sigma)
    assert 0.85 < moved.std() / expected < 1.15
    # Neighbours of a Gaussian-smoothed field differ by std/(√2·sigma): its correlation is exp(−d²/4sigma²).
    assert 0.8 < np.diff(moved, axis=1).std() / (expected / (np.sqrt(2) * sigma)) < 1.2


def test_random_resized_crop_is_a_magnified_part():
    """On ramps in x and y the result is linear: its slopes give the size of the crop, its ends the position."""
    height, width = 40, 30
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ramps = np.stack([(x + 0.5) / width, (y + 0.5) / height], axis=-1)
    whole = over_keys(random_resized_crop, ramps, scale=(1.0, 1.0), ratio=(0.75, 0.75))
    np.testing.assert_allclose(whole, np.broadcast_to(ramps, whole.shape), atol=1e-5)
    results = over_keys(random_resized_crop, ramps, scale=(0.2, 0.5), ratio=(0.8, 1.25))
    middle = results[:, 10:-10, 8:-8]  # edge pixels lack a neighbour to interpolate
    part_w = np.diff(middle[..., 0], axis=2).mean((1, 2)) * width * width
    part_h = np.diff(middle[..., 1], axis=1).mean((1, 2)) * height * height
    area, aspect = part_w * part_h / (width * height), part_w / part_h
    assert ((area > 0.195) & (area < 0.505)).all() and np.ptp(area) > 0.15
    assert ((aspect > 0.79) & (aspect < 1.26)).all() and np.ptp(aspect) > 0.2
    assert np.ptp(results[:, 0, 0, 0]) > 0.2, "the place must vary"


def test_color_jitter_changes_one_thing_at_a_time():
    image = 0.35 + 0.3 * IMAGE_8x6x3  # so that nothing is clipped
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    same = over_keys(color_jitter, image, **none)
    np.testing.assert_allclose(same, np.broadcast_to(image, same.shape), atol=1e-5)

    factors = over_keys(color_jitter, image, **{**none, "brightness": 0.2}) / image
    np.testing.assert_allclose(factors.max((1, 2, 3)), factors.min((1, 2, 3)), atol=1e-4)
    assert 0.8 <= factors.min() < 0.9 and 1.1 < factors.max() <= 1.2

    mean = (image @ luma).mean()
    factors = (over_keys(color_jitter, image, **{**none, "contrast": 0.2})[:, 0, 0] - mean) / (image[0, 0] - mean)
    np.testing.assert_allclose(factors[:, 0], factors[:, 1], atol=1e-3)
    assert 0.8 <= factors.min() < 0.9 and 1.1 < factors.max() <= 1.2

    for changed in ({"saturation": 0.5}, {"hue": 0.5}):
        results = over_keys(color_jitter, image, **{**none, **changed})
        np.testing.assert_allclose(results @ luma, np.broadcast_to(image @ luma, results.shape[:3]), atol=1e-4)
        assert np.abs(results - image).max() > 0.05
    grey = over_keys(color_jitter, image[..., :1], **{**none, "saturation": 0.5, "hue": 0.5})
    np.testing.assert_allclose(grey, np.broadcast_to(image[..., :1], grey.shape), atol=1e-6)


def test_pca_color_adds_one_color_along_the_principal_components():
    """On grey images, so nothing is clipped; the first component is brightness, the others are small."""
    image = np.full((4, 5, 3), 0.5, np.float32)
    keys = jax.random.split(KEY, 4000)
    results = np.asarray(jax.vmap(lambda key: pca_color(key, jnp.asarray(image), sigma=0.5))(keys)) - image
    colors = results[:, 0, 0]
    np.testing.assert_allclose(results, np.broadcast_to(colors[:, None, None], results.shape), atol=1e-6)
    values, vectors = np.linalg.eigh(np.cov(colors.T))
    np.testing.assert_allclose(np.sqrt(values), [0.5 * 0.0045, 0.5 * 0.0188, 0.5 * 0.2175], rtol=0.05)
    np.testing.assert_allclose(np.abs(vectors[:, 2]), [0.5675, 0.5808, 0.5836], atol=2e-3)
    np.testing.assert_allclose(np.abs(vectors[:, 1]), [0.7192, 0.0045, 0.6948], atol=2e-2)
    still = over_keys(pca_color, IMAGE_8x6x3, sigma=0.0)
    np.testing.assert_allclose(still, np.broadcast_to(IMAGE_8x6x3, still.shape), atol=1e-6)
    with pytest.raises(UserError, match=r"pca_color needs colour images, and these have 1 channels"):
        pca_color(KEY, jnp.zeros((4, 4, 1)))


# Batches


def float_batch() -> tuple[np.ndarray, np.ndarray]:
    return IMAGES_6x8x8x3.astype(np.float32) / 255, np.eye(4, dtype=np.float32)[LABELS_6]


def test_mixup_is_one_convex_combination_with_a_shuffled_batch():
    """Only pixel i of image i is lit, so the mixed batch is the matrix λ·I + (1 − λ)·P itself."""
    images_6x6x1x1, (_, targets) = np.eye(6, dtype=np.float32)[..., None, None], float_batch()
    shares = []
    for key in KEYS_20[:5]:
        mixed, mixed_targets = mixup(key, jnp.asarray(images_6x6x1x1), jnp.asarray(targets), alpha=1.0)
        matrix = np.asarray(mixed)[..., 0, 0]
        share = np.diag(matrix).min()  # larger where an example is its own partner
        permutation = (matrix - share * np.eye(6)) / (1 - share)
        np.testing.assert_allclose(np.sort(permutation), np.eye(6)[[5] * 6], atol=1e-5)
        np.testing.assert_allclose(permutation.sum(0), 1.0, atol=1e-5)
        np.testing.assert_allclose(mixed_targets, matrix @ targets, atol=1e-6)
        shares.append(share)
    assert 0 < min(shares) < max(shares) - 0.1 < 1


def test_cutmix_pastes_a_box_and_counts_its_pixels():
    images, targets = float_batch()
    boxes = []
    for key in KEYS_20[:6]:
        mixed, mixed_targets = map(np.asarray, cutmix(key, jnp.asarray(images), jnp.asarray(targets), alpha=1.0))
        pasted = (mixed != images).any((0, 3))
        rows, columns = np.nonzero(pasted)
        if len(rows) == 0:
            continue
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "not a box"
        area = len(rows) / 64
        boxes.append(area)
        inside = [image[pasted].tobytes() for image in images]
        partners = [inside.index(image[pasted].tobytes()) for image in mixed]
        assert sorted(partners) == list(range(6))
        np.testing.assert_allclose(mixed_targets, (1 - area) * targets + area * targets[partners], atol=1e-6)
    assert len(set(boxes)) > 2


# By name


ARGUMENTS = {"pad_crop": ":padding=2,mode=reflect", "cutout": ":size=4"}
ALL = [name + ARGUMENTS.get(name, "") for name in AUGMENTATIONS]


def test_without_augmentation_images_are_scaled_and_labels_one_hot():
    images, targets = make_augment([], 5)(KEY, jnp.asarray(IMAGES_6x8x8x3), jnp.asarray(LABELS_6))
    np.testing.assert_allclose(images, IMAGES_6x8x8x3 / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(targets, np.eye(5)[LABELS_6])
    assert (images.dtype, targets.dtype) == (jnp.float32, jnp.float32)


@pytest.mark.parametrize("spec", ALL)
def test_each_is_pure_and_keeps_range_and_shape(spec: str):
    augment = jax.jit(make_augment([spec], 4))
    images, labels = jnp.asarray(IMAGES_6x8x8x3), jnp.asarray(LABELS_6)
    results, targets = augment(KEY, images, labels, jnp.int32(0))
    assert (results.shape, results.dtype) == (images.shape, jnp.float32)
    assert results.min() >= 0 and results.max() <= 1 and results.std() > 0.05
    np.testing.assert_allclose(targets.sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(results, augment(KEY, images, labels, jnp.int32(0))[0])
    assert np.abs(results - augment(jax.random.key(1), images, labels, jnp.int32(0))[0]).max() > 0.01
    assert np.abs(results - augment(KEY, images, labels, jnp.int32(6))[0]).max() > 0.01
    if spec.partition(":")[0] in PER_IMAGE:
        # A part that starts at example 3 is augmented as it is in the whole batch.
        part, _ = augment(KEY, jnp.roll(images, -3, axis=0), labels, jnp.int32(3))
        np.testing.assert_allclose(part[:3], results[3:], atol=1e-6)


def test_augmenting_halves_equals_augmenting_the_whole_batch():
    augment = jax.jit(make_augment(["flip", "pad_crop:padding=2", "cutout:size=4"], 4))
    images, labels = jnp.asarray(IMAGES_6x8x8x3), jnp.asarray(LABELS_6)
    halves = [augment(KEY, images[i : i + 3], labels[i : i + 3], i) for i in (0, 3)]
    for whole, parts in zip(augment(KEY, images, labels), zip(*halves, strict=True), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_jit_changes_nothing():
    augment = make_augment(["affine"], 4)
    batch = jnp.asarray(IMAGES_6x8x8x3), jnp.asarray(LABELS_6)
    for plain, jitted in zip(augment(KEY, *batch), jax.jit(augment)(KEY, *batch), strict=True):
        np.testing.assert_allclose(plain, jitted, atol=1e-5)


def test_a_repeated_augmentation_draws_independently():
    once, twice = (make_augment(["pad_crop:padding=3"] * n, 4) for n in (1, 2))
    image = np.zeros((6, 15, 15, 1), np.uint8)
    image[:, 7, 7] = 255
    batch = jnp.asarray(image), jnp.asarray(LABELS_6)
    first, second = (np.argwhere(np.asarray(f(KEY, *batch)[0]))[:, 1:3] - 7 for f in (once, twice))
    assert not np.array_equal(second, 2 * first)


def test_arguments_reach_the_augmentation():
    augment = make_augment(["flip:p=1", "affine:degrees=0,scale=1/1,translate=0"], 4)
    images, _ = augment(KEY, jnp.asarray(IMAGES_6x8x8x3), jnp.asarray(LABELS_6))
    np.testing.assert_allclose(images, IMAGES_6x8x8x3[:, :, ::-1] / 255.0, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("flipp", r"unknown augmentation 'flipp'; perhaps you meant flip"),
        ("pad_crop:pading=4", r"no argument 'pading'; perhaps you meant padding \(known: padding=4, mode=zero\)"),
        ("pad_crop:padding=4.5", r"padding=4.5 for augmentation pad_crop: write padding=INTEGER"),
        ("pad_crop:mode=wrap", r"write mode=zero\|reflect"),
        ("pad_crop:4", r"'4' for augmentation pad_crop is not key=value"),
        ("affine:scale=0.9", r"write scale=NUMBER/NUMBER"),
        ("flip:key=1", r"no argument 'key'"),
    ],
)
def test_mistakes_in_a_spec_are_told_in_one_line(spec: str, message: str):
    with pytest.raises(UserError, match=message) as error:
        make_augment([spec], 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pad_crop:padding=-1", r"padding=-1 for pad_crop with mode=zero .* 8x8 images: set it to 0 or more(\n|$)"),
        ("pad_crop:padding=8,mode=reflect", "padding=8 for pad_crop with mode=reflect .*: set it to .*, at most 7"),
        ("cutout:size=0", "size=0 for cutout: set "),
        ("elastic:sigma=0", "sigma=0.0 for elastic: set "),
        ("affine:scale=2/1", "scale=2.0/1.0 for affine: set "),
        ("random_resized_crop:scale=0.5/1.5", "scale=0.5/1.5 and .* for random_resized_crop: set "),
        ("color_jitter:hue=-1", "color_jitter has a negative argument: set "),
        ("pca_color:sigma=-1", "sigma=-1.0 for pca_color: set "),
        ("mixup:alpha=0", "alpha=0.0 for mixup or cutmix: set "),
    ],
)
def test_values_out_of_range_are_told_when_the_batch_is_seen(spec: str, message: str):
    with pytest.raises(UserError, match=message):
        make_augment([spec], 4)(KEY, jnp.asarray(IMAGES_6x8x8x3), jnp.asarray(LABELS_6))
