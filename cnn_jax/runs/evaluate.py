"""Evaluates a trained model on a split of its own data set, or on another set with the same classes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnn_jax.arguments import naming
from cnn_jax.config import NO_TEST, Config, DataConfig
from cnn_jax.data import Source, default_splits, make_pipeline, open_source
from cnn_jax.data.channels import KINDS
from cnn_jax.data.sources import DerivedSource, Example
from cnn_jax.errors import UserError
from cnn_jax.models.ensembles import Committee, Network, Views, member
from cnn_jax.runs.inference import check_batch_size
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.weights_file import load_weights
from cnn_jax.tasks import check_labelled
from cnn_jax.training.evaluation import Evaluator
from cnn_jax.training.parallel import make_parallel
from cnn_jax.training.step import make_eval_step
from cnn_jax.weights.trained import Trained, load_trained


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
    trained: Trained | None = None,
) -> dict[str, Any]:
    """Evaluates the weights of a finished run on every example of a split, once.

    Args:
        run: the run folder.
        split: "train", "validation" or "test" as in the run, or split syntax such as test[:1000].
        dataset: another data set; the names of its classes must be among the run's.
        data_dir: folder of TFDS sets.
        image_size: size to which images are resized; default: as in the run for its own data set, the model's for
            another folder, otherwise the size of the data set.
        batch_size: images per forward pass; default: as in the run.
        views: names of `cnn_jax.models.ensembles.VIEWS`, with arguments: probabilities are averaged over these views of
            each image (test-time augmentation).
        skip_bad_images: leave out unreadable images of a folder, with a warning that counts them; default: as in the
            run.
        trained: the run's model, if it is open; then the run need not be finished.

    Returns:
        "run", "dataset", "split", and the task's measures: "count", "loss" (without label smoothing) and, for
        classification, "accuracy" with "accuracy_low" and "accuracy_high" (Wilson's interval, 95 %) and, with ten
        classes or more, "top5_accuracy".

    Raises:
        UserError: no finished run, an unknown data set or split, or images or classes that do not suit the run.
    """
    trained = trained or load_trained(run)
    data = _data_config(trained.config.data, dataset, data_dir, image_size, trained.preprocess.image_shape)
    data = dataclasses.replace(data, skip_bad_images=skip_bad_images or data.skip_bad_images)
    source = _open(data, split, trained)
    _check_shape(source, trained.preprocess.image_shape, run)
    scores = evaluate_source(
        trained, source, batch_size=data.eval_batch_size if batch_size is None else batch_size, views=views
    )
    return {"run": str(run), "dataset": data.dataset, "split": source.split} | scores


def evaluate_source(
    trained: Trained, source: Source, *, batch_size: int = 500, views: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the task's measures of a trained model on every example of a source.

    Raises:
        UserError: the source has a class that the model lacks, or no labels although the task needs them.
    """
    check_labelled(trained.task, source)
    network = _with_views(trained.model, views)
    collected = _collect(trained, network, trained.variables, _relabelled(source, trained), batch_size)
    return trained.task.measures(collected)


def member_predictions(
    run: str | Path, split: str = "test", *, views: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Evaluates every member of a run (most runs have one) on the run's own data.

    Returns:
        Logits (M, N, K), labels (N,) and class names.

    Raises:
        UserError: see `evaluate`; or the run's task has no logits.
    """
    trained = load_trained(run)
    model, members = trained.model, [trained.variables]
    if isinstance(model, Committee):
        model, members = model.model, _unstacked(trained.variables, trained.config)
    elif trained.config.compares_rates:
        members = _unstacked(load_weights(Path(run) / files.MEMBERS)[0], trained.config)
    source = _relabelled(_open(trained.config.data, split, trained), trained)
    batch_size, network = trained.config.data.eval_batch_size, _with_views(model, views)
    each = [_collect(trained, network, own, source, batch_size) for own in members]
    if "logits" not in each[0]:
        raise UserError(f"{run} is a run of {trained.task.name}: a committee needs classifiers")
    return np.stack([collected["logits"] for collected in each]), each[0]["label"], trained.classes


def _unstacked(variables: Any, config: Config) -> list[Any]:
    return [member(variables, i) for i in range(config.train.members)]


def _with_views(model: Network, views: Sequence[str]) -> Network:
    with naming("`views`"):
        return Views(model, tuple(views)) if views else model


def _collect(
    trained: Trained, network: Network, variables: Any, source: Source, batch_size: int
) -> dict[str, np.ndarray]:
    """Returns what the task collects of every example."""
    check_batch_size(batch_size)
    step = make_eval_step(network, trained.task, trained.preprocess.normalize_batch)
    pipeline = make_pipeline(source, batch_size=min(batch_size, len(source)), seed=0)
    evaluator = Evaluator(step, pipeline, make_parallel("jit", 1, pipeline.batch_size))
    return evaluator.predictions(jax.device_put(variables))[1]


@dataclasses.dataclass(frozen=True)
class _Relabelled(DerivedSource):
    """`source` with label k replaced by `renumbered[k]`."""

    renumbered: tuple[int, ...]
    names: tuple[str, ...]
    fingerprint: None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the new labels."""
        return self.names

    @property
    def labels(self) -> np.ndarray | None:
        """The new label of every example, see `read_labels`."""
        own = super().labels
        return None if own is None else np.asarray(self.renumbered)[own]

    def __getitem__(self, index: int, /) -> Example:
        example = self.source[index]
        return {**example, "label": self.renumbered[example["label"]]}


def _relabelled(source: Source, trained: Trained) -> Source:
    """The source with the run's labels; the source itself if they are the same, or its task has no classes."""
    classes = trained.classes
    if trained.task.outputs is None:
        return source
    labels = match_classes(source, classes)
    if tuple(source.class_names) == tuple(classes):
        return source
    return _Relabelled(source, tuple(int(label) for label in labels), tuple(classes))


def _check_shape(source: Source, wanted: tuple[int, int, int], run: str | Path) -> None:
    """Rejects images whose shape is not the model's."""

    given = source.image_shape
    if given == wanted:
        return
    height, width, channels = wanted
    advice = []
    if given[-1] != channels:
        advice.append(f"choose a {KINDS.get(channels, f'{channels}-channel')} `dataset`")
    if given[:-1] != (height, width):
        # `image_size` makes only squares.
        size = f"set `image_size` to {height}"
        advice.append(size if height == width else f"resize the images to {height}x{width} pixels")
    raise UserError(
        f"{source.name} has {_describe(given)} images, but {run} was trained on {_describe(wanted)}: "
        f"{' and '.join(advice)}"
    )


def _describe(image_shape: tuple[int, int, int]) -> str:

    return f"{'x'.join(map(str, image_shape))} {KINDS.get(image_shape[-1], '')}".rstrip()


def match_classes(source: Source, classes: Sequence[str]) -> np.ndarray:
    """Returns, for each label of the source, the index of the run's class of the same name: int (labels,).

    Raises:
        UserError: the source has a class that the run lacks.
    """
    strange = [name for name in source.class_names if name not in classes]
    if strange:
        raise UserError(
            f"{source.name} has classes that the run does not know ({', '.join(strange[:8])}): choose data with some "
            f"of its {len(classes)} classes ({', '.join(classes[:8])}{', …' if len(classes) > 8 else ''})"
        )
    return np.array([classes.index(name) for name in source.class_names])


def _data_config(
    data: DataConfig, dataset: str | None, data_dir: str | None, image_size: int | None, shape: tuple[int, int, int]
) -> DataConfig:
    """Returns the config of the run's data set, or of another, to which the run's splits and size do not apply.

    Images of a folder are always converted: to `shape`, the model's, if that is square.
    """
    if dataset not in (None, data.dataset):
        folder = dataset.startswith("folder:")
        fits = shape[0] if folder and shape[0] == shape[1] else None
        own: dict[str, Any] = dict.fromkeys(("train_split", "validation_split", "test_split", "group_by"))
        own["image_size"] = fits
        if folder and shape[-1] in (1, 3):
            own["channels"] = shape[-1]
        data = dataclasses.replace(data, dataset=dataset, **own)
    return dataclasses.replace(data, data_dir=data_dir or data.data_dir, image_size=image_size or data.image_size)


def _open(data: DataConfig, split: str, trained: Trained) -> Source:
    """Opens a split as the model's training data were read."""
    if split in ("train", "validation", "test"):
        usual = getattr(default_splits(data.dataset, data.data_dir, data.group_by), split)
        chosen = getattr(data, f"{split}_split")
        split = usual if chosen in (None, NO_TEST) else chosen
    return open_source(
        data.dataset,
        split,
        data_dir=data.data_dir,
        image_size=data.image_size,
        channels=data.channels,
        skip_bad_images=data.skip_bad_images,
        levels=trained.preprocess.levels,
        group_by=data.group_by,
    )
