# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # LeNet-5, from pure functions to a finished run
#
# We train a small network on 1,257 handwritten digits with the functions of the package, look at what it has learnt,
# try other optimizers, and then let the package do all of it. This takes about a minute on two CPU cores and needs no
# network connection.
#
# Open this file as a notebook (`jupytext --to notebook docs/tutorial.py`), or run `python docs/tutorial.py`, which
# saves the figures in the folder `$TUTORIAL_PICTURES`, or a temporary one.

# %%
import os
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import cnn_jax
from cnn_jax.config import OptimConfig
from cnn_jax.data import Preprocess, make_pipeline, open_source
from cnn_jax.data.augment import make_augment
from cnn_jax.inspect.summary import count_flops, count_parameters, layer_table
from cnn_jax.models import build, stages
from cnn_jax.optim.optimizers import make_optimizer
from cnn_jax.tasks import Classification
from cnn_jax.training.compiled import mean_metrics
from cnn_jax.training.run import train
from cnn_jax.training.state import TrainState, init_state, variables_for_evaluation
from cnn_jax.training.step import make_eval_step, make_train_step
from experiments.digits_lenet5 import CONFIG

PICTURES = Path(os.environ.get("TUTORIAL_PICTURES") or tempfile.mkdtemp(prefix="tutorial-"))
PICTURES.mkdir(parents=True, exist_ok=True)


def keep(figure: Figure, name: str) -> None:
    """Saves a figure; a notebook shows it as well."""
    figure.savefig(PICTURES / f"{name}.png", dpi=100, bbox_inches="tight")
    print(PICTURES / f"{name}.png")


# %% [markdown]
# ## The model
#
# A model is a stateless description. Its layers can be listed without computing anything: output shape, parameters,
# FLOPs for one image, and the number of image pixels that one output depends on.

# %%
model = build("lenet5", num_classes=10)
print(f"{'layer':8} {'output':>12} {'parameters':>10} {'FLOPs':>9}  sees")
for row in layer_table(model, (28, 28, 1)):
    output = "x".join(map(str, row.output_shape))
    print(f"{row.name:8} {output:>12} {row.parameters:10,} {row.flops:9,}  {row.receptive_field or 'all'}")

# %% [markdown]
# ## The data
#
# A source is a sequence of `{"image": uint8 HxWxC, "label": int}`. The 8x8 digits are enlarged to the 28x28 that
# LeNet-5 was made for.

# %%
train_set = open_source("digits", "train", image_size=28)
test_set = open_source("digits", "test", image_size=28)
figure, axes = plt.subplots(2, 10, figsize=(10, 2.4))
for i, axis in enumerate(axes.flat):
    axis.imshow(train_set[i]["image"][..., 0], cmap="gray")
    axis.set_title(train_set.class_names[train_set[i]["label"]])
    axis.axis("off")
keep(figure, "digits")

# %% [markdown]
# A pipeline makes batches from a source; batch k depends on (seed, k) and nothing else. An augmentation is a pure
# function of a key and a batch; it takes uint8 images and returns floats in [0, 1]. The task says what to learn: here
# it adds one-hot targets to a batch, and computes the loss.

# %%
preprocess = Preprocess.fit(train_set)
train_data = make_pipeline(train_set, batch_size=64, seed=0)
test_data = make_pipeline(test_set, batch_size=120, seed=0)
task = Classification(train_set.class_names)
augment = make_augment(["affine:degrees=15,translate=0.1"])

batch = train_data.gather(train_data.arrays, next(train_data.train_items()))
augmented = augment(jax.random.key(0), task.prepare(batch))["image"]
figure, axes = plt.subplots(2, 10, figsize=(10, 2.2))
for i in range(10):
    axes[0, i].imshow(batch["image"][i, ..., 0], cmap="gray")
    axes[1, i].imshow(augmented[i, ..., 0], cmap="gray")
for axis in axes.flat:
    axis.axis("off")
figure.suptitle("top: original; bottom: rotated, scaled, shifted")
keep(figure, "augmented")

# %% [markdown]
# ## A training step is a function
#
# `step(state, batch) -> (state, sums)`. The state is a tree of arrays: step, seed, parameters, optimizer state. Sums
# are pairs (sum, count). There is no hidden state, so `jax.jit` compiles all of it.

# %%
STEPS = 150
eval_step = jax.jit(make_eval_step(model, task, preprocess.normalize_batch))


def evaluate(state: TrainState) -> dict[str, float]:
    """Mean loss and accuracy over the test set, every example once."""
    variables = variables_for_evaluation(state)
    items = test_data.eval_items()
    return mean_metrics([eval_step(variables, test_data.gather(test_data.arrays, item))[0] for item in items])


def train_with(optimizer_name: str, learning_rate: float) -> tuple[TrainState, list[float]]:
    """Trains from the same weights on the same batches; returns the state and the loss of every step."""
    config = OptimConfig(optimizer=optimizer_name, learning_rate=learning_rate, schedule="one_cycle")
    optimizer = make_optimizer(config, total_steps=STEPS)
    print(optimizer.description)
    step = jax.jit(make_train_step(model, task, optimizer, augment, preprocess.normalize_batch), donate_argnums=0)
    state = init_state(model, optimizer, preprocess.image_shape, seed=0)
    losses = []
    for _, item in zip(range(STEPS), train_data.train_items()):
        state, metrics = step(state, train_data.gather(train_data.arrays, item))
        loss_sum, count = metrics["loss"]
        losses.append(float(loss_sum / count))
    return state, losses


state, losses = train_with("adam", learning_rate=2e-3)
result = evaluate(state)
print(f"{count_parameters(state.params):,} parameters, {count_flops(model, (28, 28, 1)):,} FLOPs an image")
print(f"after {int(state.step)} steps: test accuracy {result['accuracy']:.2%}, loss {result['loss']:.4f}")

# %%
figure, axis = plt.subplots(figsize=(6, 3))
axis.plot(losses, linewidth=1)
axis.set(xlabel="step", ylabel="cross-entropy (nats)", yscale="log", title="training loss, augmented images")
keep(figure, "loss")

# %% [markdown]
# ## What it has learnt
#
# The first layer's six 5x5 filters, and the activations of every stage for one image. `stages` returns them by name.

# %%
kernel = np.asarray(state.params["conv1"]["kernel"])  # (5, 5, 1, 6)
limit = np.abs(kernel).max()
figure, axes = plt.subplots(1, 6, figsize=(8, 1.6))
for i, axis in enumerate(axes):
    axis.imshow(kernel[..., 0, i], cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.axis("off")
figure.suptitle("filters of conv1: red positive, blue negative")
keep(figure, "filters")

# %%
example = test_set[3]
variables = variables_for_evaluation(state)
logits, activations = stages(model, variables, preprocess.normalize(example["image"][None]))
maps = {name: np.asarray(x[0]) for name, x in activations.items() if x.ndim == 4}
figure, axes = plt.subplots(len(maps), 16, figsize=(12, 1 + len(maps)))
for axis in axes.flat:
    axis.axis("off")
for row_axes, (name, x) in zip(axes, maps.items()):
    row_axes[0].set_title(f"{name} {x.shape}", fontsize=8, loc="left")
    for axis, channel in zip(row_axes, np.moveaxis(x, -1, 0)):
        axis.imshow(channel, cmap="viridis")
figure.suptitle(f"a {example['label']}, seen as a {int(logits.argmax())}")
keep(figure, "stages")

# %% [markdown]
# ## Another optimizer is another word
#
# The initial weights, batches and augmentations are the same: only the optimizer and its rate differ. Before you call
# one better, tune the rate of each and use several seeds.

# %%
curves = {"adam": losses}
for name, learning_rate in {"momentum": 0.05, "adagrad": 1e-2}.items():
    other, curves[name] = train_with(name, learning_rate)
    print(f"{name}: test accuracy {evaluate(other)['accuracy']:.2%}")

figure, axis = plt.subplots(figsize=(6, 3.5))
for name, values in curves.items():
    axis.plot(np.convolve(values, np.ones(10) / 10, mode="valid"), label=name)
axis.set(xlabel="step", ylabel="cross-entropy (nats)", yscale="log", title="mean over ten steps")
axis.legend()
keep(figure, "optimizers")

# %% [markdown]
# ## All of it in one call
#
# An experiment is a config; `train` makes it a run in a folder, with checkpoints, metrics, a report, and weights that
# are chosen on a validation split. `python -m experiments.digits_lenet5 --steps 150` does the same.

# %%
run = PICTURES / "run"
summary = train(CONFIG.override(steps=STEPS, epochs=None, workdir=str(run), fresh=True))
print(sorted(path.name for path in run.iterdir()))

# %% [markdown]
# ## Load the run and predict
#
# The folder is all that is needed: model, weights (`trained.variables`, NumPy arrays) and preprocessing are in it.

# %%
trained = cnn_jax.load(run)
images = np.stack([test_set[i]["image"] for i in range(len(test_set))])
labels = np.array([test_set[i]["label"] for i in range(len(test_set))])
probabilities = trained.predict(images)
accuracy = np.mean(probabilities.argmax(-1) == labels)
assert np.isclose(accuracy, summary["test_accuracy"])
print(f"test accuracy {accuracy:.2%}")

figure, axes = plt.subplots(1, 8, figsize=(10, 1.8))
for axis, i in zip(axes, np.argsort(probabilities[np.arange(len(labels)), labels])):
    axis.imshow(images[i, ..., 0], cmap="gray")
    axis.set_title(f"{labels[i]}: {probabilities[i].argmax()} {probabilities[i].max():.0%}", fontsize=8)
    axis.axis("off")
figure.suptitle("the eight least certain of their label: label, then prediction", y=1.1)
keep(figure, "least_certain")
