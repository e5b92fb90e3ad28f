"""Softmax regression on MNIST: 92 % with 7,850 parameters, where every course starts.

    python -m experiments.mnist_softmax
    python -m experiments.mnist_softmax --preset mlp     # two hidden layers of 500 sigmoid units

Test accuracy: 92.55 ± 0.05 % over 5 seeds, 7 seconds on two CPU cores. The lectures train the preset's network with
Adam, 20 epochs of batches of 100, and print no figure for it; it has not been measured here.
"""

from cnn_jax.commands.experiment import run
from cnn_jax.config import Config

CONFIG = Config("mnist_softmax").override(
    dataset="mnist",
    model="softmax_regression",
    normalize="none",
    optimizer="momentum",
    learning_rate=0.1,
    schedule="cosine",
    batch_size=128,
    epochs=20,
)
PRESETS = {
    "mlp": CONFIG.override(
        model="mlp_500_500", optimizer="adam", learning_rate=1e-3, schedule="constant", batch_size=100, epochs=20
    )
}

if __name__ == "__main__":
    run(CONFIG, __doc__, PRESETS)
