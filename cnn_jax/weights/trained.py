"""The trained model of a finished run."""

from pathlib import Path
from typing import Any

from cnn_jax.data.preprocess import Preprocess
from cnn_jax.errors import UserError
from cnn_jax.storage import run_folder as files


def read_preprocess(run: str | Path) -> Preprocess:
    """Returns what turns an image into the model's input."""
    from cnn_jax.data.preprocess import Preprocess

    path = Path(run) / files.PREPROCESS
    return Preprocess.from_json(files.read_text(path, "the preprocessing of a run"), path)


def load(run: str | Path) -> tuple[Any, dict[str, Any], Preprocess]:
    """Returns the trained model of a finished run: the module, its variables (NumPy arrays) and the preprocessing.

    The model is a Flax module; of a run of several members, a `cnn_jax.models.ensembles.Committee` of it, whose variables have
    a first axis more.

    Raises:
        UserError: no run folder, an unfinished run, an unknown model, or weights that are not of this model.
    """
    config = files.read_config(run)
    path = Path(run) / files.WEIGHTS
    if not path.is_file():
        again = f"python -m experiments.{config.experiment} --config {Path(run) / files.CONFIG} --workdir {run}"
        raise UserError(
            f"given {run}: an unfinished run (no {files.WEIGHTS}); expected a finished one; go on with {again}"
        )

    import jax
    import jax.numpy as jnp

    from cnn_jax.models import build
    from cnn_jax.models.ensembles import Committee
    from cnn_jax.storage.weights_file import check_same_structure, load_weights

    classes, preprocess = files.read_classes(run), read_preprocess(run)
    model = build(
        config.model.model, len(classes), dtype=jnp.dtype(config.model.precision), args=config.model.model_args
    )
    images = jax.ShapeDtypeStruct((1, *preprocess.image_shape), jnp.float32)
    expected = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    members = config.train.members
    if members > 1:
        expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((members, *leaf.shape), leaf.dtype), expected)
    variables, _ = load_weights(path)
    size = "x".join(map(str, preprocess.image_shape))
    check_same_structure(
        variables,
        expected,
        given=str(path),
        wanted=f"weights of {config.model.model} for {size} images and the {len(classes)} classes of {files.CLASSES}",
    )
    return model if members == 1 else Committee(model), variables, preprocess
