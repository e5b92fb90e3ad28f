"""The network of Keras's CIFAR-10 example: 32, 32, pool, 64, 64, pool, 512 units, with its dropout.

    python -m experiments.cifar10_keras_cnn
    python -m experiments.cifar10_keras_cnn --optimizer rmsprop --learning-rate 1e-4

`--preset quick` (3 epochs, one seed) reaches 64.7 % on 5,000 held-out training images and 63.7 % on 1,017 test images,
in 107 seconds on two CPU cores. The long run has not been measured.
"""

from cnn_jax.commands.experiment import run
from cnn_jax.config import Config

CONFIG = Config("cifar10_keras_cnn").override(
    dataset="cifar10",
    image_size=32,
    model="keras_cifar_cnn",
    optimizer="adam",
    learning_rate=1e-3,
    schedule="one_cycle",
    augment=("pad_crop:padding=4", "flip"),
    batch_size=128,
    epochs=50,
)
PRESETS = {"quick": CONFIG.override(epochs=3)}

if __name__ == "__main__":
    run(CONFIG, __doc__, PRESETS)
