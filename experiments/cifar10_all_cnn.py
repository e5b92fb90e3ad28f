"""All-CNN-C on CIFAR-10: 7.25 % error with flips and shifts in the paper, 9.08 % without.

    python -m experiments.cifar10_all_cnn                  # the paper's recipe, for an accelerator
    python -m experiments.cifar10_all_cnn --preset quick   # 8 epochs with Adam

Springenberg, Dosovitskiy, Brox and Riedmiller, "Striving for simplicity: the all convolutional net" (2014), §3.1:
momentum 0.9, weight decay 1e-3, 350 epochs, the learning rate divided by 10 after 200, 250 and 300; dropout of the
input and after the strided convolutions. Of the rates that the paper tries, 0.25, 0.1, 0.05 and 0.01, this is 0.05.
Shifts are by up to 4 pixels (paper: 5); images are standardised per channel, not whitened. Neither recipe has been run
to the end.
"""

from cnn_jax.commands.experiment import run
from cnn_jax.config import Config

CONFIG = Config("cifar10_all_cnn").override(
    dataset="cifar10",
    image_size=32,
    model="all_cnn_c",
    optimizer="momentum",
    learning_rate=0.05,
    schedule="step",
    schedule_args=("boundaries=0.5714/0.7143/0.8571", "factor=0.1"),
    weight_decay=1e-3,
    augment=("pad_crop:padding=4", "flip"),
    batch_size=128,
    epochs=350,
)
PRESETS = {
    "quick": CONFIG.override(optimizer="adam", learning_rate=1e-3, schedule="one_cycle", schedule_args=(), epochs=8)
}

if __name__ == "__main__":
    run(CONFIG, __doc__, PRESETS)
