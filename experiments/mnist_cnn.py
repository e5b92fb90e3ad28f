"""The two-convolution network of TensorFlow's MNIST tutorial (32 and 64 filters of 5x5, 1,024 units, dropout).

    python -m experiments.mnist_cnn

The lecture reports 99.26 % after 40 minutes of training. Here, with small random rotations and shifts, test accuracy is
99.49 ± 0.06 % over 5 seeds, 5 minutes on two CPU cores.
"""

from cnn_jax.commands.experiment import run
from cnn_jax.config import Config

CONFIG = Config("mnist_cnn").override(
    dataset="mnist",
    image_size=28,
    model="mnist_cnn",
    optimizer="adam",
    learning_rate=1.5e-3,
    schedule="one_cycle",
    augment=("affine:degrees=10,translate=0.08",),
    batch_size=128,
    epochs=6,
)

if __name__ == "__main__":
    run(CONFIG, __doc__)
