"""A convolutional auto-encoder on the 1,797 handwritten digits that ship with the package.

    python -m experiments.digits_autoencoder

Masci et al. 2011. The code is 7x7x8 numbers for 28x28 pixels. The loss is the mean squared error on normalized images;
these have variance 1, so it is the share of the variance that is lost. The report shows inputs above their
reconstructions.
"""

from cnn_jax.commands.experiment import run
from cnn_jax.config import Config

CONFIG = Config("digits_autoencoder").override(
    dataset="digits",
    image_size=28,
    task="reconstruction",
    model="conv_autoencoder",
    optimizer="adam",
    learning_rate=2e-3,
    schedule="one_cycle",
    batch_size=64,
    epochs=20,
)

if __name__ == "__main__":
    run(CONFIG, __doc__)
