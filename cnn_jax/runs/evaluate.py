"""How good a trained model is on a split of its own data set, or on another set with the same classes.

python -m cnn_jax evaluate runs/mnist_lenet5
python -m cnn_jax evaluate runs/mnist_* --split validation --json scores.json
python -m cnn_jax evaluate runs/own --dataset folder:new_photos --split test[:500]
python -m cnn_jax evaluate runs/cifar10_resnet --views flip
python -m cnn_jax evaluate runs/alexnet --views ten_crop
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from cnn_jax.config import DataConfig
    from cnn_jax.data import Preprocess, Source

TOP = 5  # also counted as right: one of the five best, as in ILSVRC; where there are at least 2 * TOP classes


def evaluate(
    run: str | Path,
    split: str = "test",
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    views: Sequence[str] = (),
    skip_bad_images: bool = False,
) -> dict[str, Any]:
    """Evaluates the weights of a finished run on every example of a split, once.

    Args:
        run: the run folder.
        split: "train", "validation" or "test", which mean what they meant in the run, or split syntax: test[:1000].
        dataset: another data set; its classes must be among the run's, by name.
        data_dir: folder of TFDS sets.
        image_size: resizes the images; default: as in the run, of another set but a folder its own.
        batch_size: images a forward pass; default: as in the run.
        views: names of `cnn_jax.models.ensembles.VIEWS`, with arguments: probabilities are averaged over these views of each
            image (test-time augmentation).
        skip_bad_images: leaves out the images of a folder that cannot be read, with a warning that names and counts
            them; default: as in the run.

    Returns:
        "run", "dataset", "split", "count", "accuracy", "accuracy_low" and "accuracy_high" (Wilson's interval, 95 %),
        "loss" (the run's, without label smoothing) and, of ten classes or more, "top5_accuracy".

    Raises:
        UserError: see `main`.
    """
    import jax

    from cnn_jax.storage.run_folder import read_classes, read_config
    from cnn_jax.weights.trained import load

    model, variables, preprocess = load(run)
    config, classes = read_config(run), read_classes(run)
    data = _data_config(config.data, dataset, data_dir, image_size, preprocess.image_shape)
    data = dataclasses.replace(data, skip_bad_images=skip_bad_images or data.skip_bad_images)
    source = _open(data, split)
    _check_shape(source, preprocess.image_shape, run)
    class_of_label = match_classes(source, classes)
    variables = jax.device_put(variables)
    network = _with_views(model, views)
    logits_NxK, labels_N = _predict(network, variables, preprocess, source, batch_size or data.eval_batch_size)
    scores = score(logits_NxK, class_of_label[labels_N], config.optim.loss)
    return {"run": str(run), "dataset": data.dataset, "split": source.split} | scores


def member_predictions(
    run: str | Path, split: str = "test", *, views: Sequence[str] = ()
) -> tuple["np.ndarray", "np.ndarray", tuple[str, ...]]:
    """Returns logits (M, N, K) of each member of a run (most have one), labels (N,) and class names, on its own data.

    Raises:
        UserError: see `main`.
    """
    import numpy as np

    from cnn_jax.models.ensembles import Committee, member
    from cnn_jax.storage.run_folder import read_classes, read_config
    from cnn_jax.weights.trained import load

    model, variables, preprocess = load(run)
    config, classes = read_config(run), read_classes(run)
    members = [variables]
    if isinstance(model, Committee):
        model, members = model.model, [member(variables, i) for i in range(config.train.members)]
    source, batch_size, network = _open(config.data, split), config.data.eval_batch_size, _with_views(model, views)
    each = [_predict(network, own, preprocess, source, batch_size) for own in members]
    return np.stack([logits for logits, _ in each]), match_classes(source, classes)[each[0][1]], classes


def _with_views(model: Any, views: Sequence[str]) -> Any:
    from cnn_jax.arguments import naming
    from cnn_jax.models.ensembles import Views

    with naming("--views"):
        return Views(model, tuple(views)) if views else model


def score(logits_NxK: "np.ndarray", labels_N: "np.ndarray", loss: str) -> dict[str, Any]:
    """Returns what `evaluate` does about predictions, from "count" on. `loss` is a name of `cnn_jax.tasks.losses.LOSSES`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cnn_jax.tasks.losses import LOSSES
    from cnn_jax.tasks.measures import top_k_accuracy, wilson_interval

    count, classes = logits_NxK.shape
    correct = int((logits_NxK.argmax(axis=1) == labels_N).sum())
    low, high = wilson_interval(correct, count)
    loss_N = LOSSES[loss](jnp.asarray(logits_NxK), jax.nn.one_hot(labels_N, classes))
    scores = {
        "count": count,
        "accuracy": correct / count,
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": float(np.mean(np.asarray(loss_N), dtype=np.float64)),
    }
    if classes >= 2 * TOP:
        scores[f"top{TOP}_accuracy"] = top_k_accuracy(logits_NxK, labels_N, TOP)
    return scores


def _check_shape(source: "Source", wanted: tuple[int, int, int], run: str | Path) -> None:
    """Refuses images of another shape than the model's; says how to change them, which depends on where they are."""
    from cnn_jax.data.channels import KINDS

    given = source.image_shape
    if given == wanted:
        return
    height, width, channels = wanted
    advice = []
    if given[-1] != channels:
        advice.append(f"give a {KINDS.get(channels, f'{channels}-channel')} --dataset")
    if given[:-1] != (height, width):
        # The flag makes squares only.
        advice.append(f"add --image-size {height}" if height == width else f"give images of {height}x{width} pixels")
    raise UserError(
        f"given {source.name} with {_describe(given)} images; expected {_describe(wanted)} as in {run}; "
        f"{' and '.join(advice)}"
    )


def _describe(image_shape: tuple[int, int, int]) -> str:
    from cnn_jax.data.channels import KINDS

    return f"{'x'.join(map(str, image_shape))} {KINDS.get(image_shape[-1], '')}".rstrip()


def match_classes(source: "Source", classes: Sequence[str]) -> "np.ndarray":
    """Returns, for each label of the source, the index of the run's class of the same name: int (labels,).

    Raises:
        UserError: a class of the source is none of the run's.
    """
    import numpy as np

    strange = [name for name in source.class_names if name not in classes]
    if strange:
        raise UserError(
            f"given {source.name} with classes the run does not know ({', '.join(strange[:8])}); "
            f"expected some of its {len(classes)} ({', '.join(classes[:8])}{', …' if len(classes) > 8 else ''}); "
            "give another --dataset"
        )
    return np.array([classes.index(name) for name in source.class_names])


def _data_config(
    data: "DataConfig", dataset: str | None, data_dir: str | None, image_size: int | None, shape: tuple[int, int, int]
) -> "DataConfig":
    """The run's data, or another set; its own splits and size belong to its own set alone.

    A folder's images are converted anyway: to the `shape` that the model takes, if that is square.
    """
    if dataset not in (None, data.dataset):
        folder = dataset.startswith("folder:")
        fits = shape[0] if folder and shape[0] == shape[1] else None
        own: dict[str, Any] = {"train_split": None, "validation_split": None, "test_split": None, "image_size": fits}
        if folder and shape[-1] in (1, 3):
            own["channels"] = shape[-1]
        data = dataclasses.replace(data, dataset=dataset, **own)
    return dataclasses.replace(data, data_dir=data_dir or data.data_dir, image_size=image_size or data.image_size)


def _open(data: "DataConfig", split: str) -> "Source":
    from cnn_jax.data import default_splits, open_source

    if split in ("train", "validation", "test"):
        usual = getattr(default_splits(data.dataset, data.data_dir), split)
        split = getattr(data, f"{split}_split") or usual
    return open_source(
        data.dataset,
        split,
        data_dir=data.data_dir,
        image_size=data.image_size,
        channels=data.channels,
        skip_bad_images=data.skip_bad_images,
    )


def _predict(
    model: Any, variables: Any, preprocess: "Preprocess", source: "Source", batch_size: int
) -> tuple["np.ndarray", "np.ndarray"]:
    """Returns logits (N, K) and labels (N,) of every example.

    Not by `training.evaluation.Evaluator`, which compiles anew for each run: here runs of one model share a program.
    """
    import numpy as np

    from cnn_jax.data import make_pipeline
    from cnn_jax.runs.inference import predict_logits

    pipeline = make_pipeline(source, batch_size=batch_size, seed=0)
    logits, labels = [], []
    for item in pipeline.eval_items():
        batch = pipeline.gather(pipeline.arrays, item)
        logits.append(predict_logits(model, variables, preprocess, batch["image"], batch_size)[batch["mask"]])
        labels.append(batch["label"][batch["mask"]])
    assert sum(map(len, labels)) == len(source), "every example is evaluated once"
    return np.concatenate(logits), np.concatenate(labels)
