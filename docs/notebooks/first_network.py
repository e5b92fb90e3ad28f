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
# # A first network
#
# Train LeNet-5 on real handwritten digits, look at the result, and swap the optimizer. It takes about half a minute on
# two CPU cores and needs no network connection.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
import optax

import cnn_jax
from cnn_jax.data import open_source

settings = {
    "image_size": 28,
    "batch_size": 64,
    "epochs": 5,
    "augment": ["affine:degrees=10,translate=0.1"],
}
run = cnn_jax.fit("lenet5", "digits", optimizer="adam", learning_rate=2e-3, **settings)
run  # noqa: B018

# %% [markdown]
# The report above is a page of the run's folder. The curves alone:

# %%
run.plot()

# %% [markdown]
# ## Predict
#
# `predict` takes bytes and returns probabilities; normalization is part of the run.

# %%
test = open_source("digits", "test", image_size=28)
probabilities = run.predict(test.images)
wrong = np.flatnonzero(probabilities.argmax(-1) != test.labels)
print(f"{len(wrong)} of {len(test.labels)} test images are wrong; evaluate says {run.evaluate('test')['accuracy']:.2%}")

figure, axes = plt.subplots(1, 8, figsize=(10, 1.6))
for axis, i in zip(axes, np.argsort(probabilities[np.arange(len(test.labels)), test.labels])):
    axis.imshow(test.images[i, ..., 0], cmap="gray")
    axis.set_title(f"{test.labels[i]}: {probabilities[i].argmax()}", fontsize=9)
    axis.axis("off")

# %% [markdown]
# ## Another optimizer
#
# A name with its rate, or any Optax transformation. The weights at the start and the batches are the same.

# %%
other = cnn_jax.fit("lenet5", "digits", optimizer=optax.sgd(0.05, momentum=0.9, nesterov=True), **settings)
for name, of in {"adam": run, "nesterov": other}.items():
    rows = [row for row in of.history if row["kind"] == "validation"]
    plt.plot([row["epoch"] for row in rows], [row["accuracy"] for row in rows], marker="o", label=name)
plt.xlabel("epoch")
plt.ylabel("validation accuracy")
plt.legend()

# %% [markdown]
# ## Keep it
#
# A saved run is all that is needed to load, evaluate and predict, from Python or by `python -m cnn_jax predict`.

# %%
import tempfile  # noqa: E402

folder = run.save(tempfile.mkdtemp() + "/lenet5")
again = cnn_jax.load(folder)
assert np.array_equal(again.predict(test.images), probabilities)
