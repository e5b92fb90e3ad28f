"""AlexNet's recipe at 32×32 pixels: a narrower AlexNet whose first layer has 5×5 filters of stride 1, on CIFAR-10.

    python -m experiments.cifar10_alexnet                  # for an accelerator
    python -m experiments.cifar10_alexnet --members 7      # and an ensemble, as in the paper
    python -m experiments.cifar10_alexnet --preset quick   # 5 epochs of a quarter of the filters

Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks" (2012), §3 to §5:
ReLU, response normalisation, overlapping pooling, dropout 0.5, batches of 128, momentum 0.9, weight decay 5e-4, 90
epochs, the rate divided by 10 three times; shifts, mirror images and colours along the principal components. §3.3
reports 11 % error on CIFAR-10, 13 % without response normalisation, from a smaller net of four convolutions. Here
weights start He-normal. It has not been run to the end.
"""

from cnn_jax.commands.experiment import run
from cnn_jax.config import Config

_FIRST = ("first_size=5", "first_stride=1", "first_padding=2", "kernel_init=he_normal")
CONFIG = Config("cifar10_alexnet").override(
    dataset="cifar10",
    image_size=32,
    channels=3,
    model="alexnet",
    model_args=(*_FIRST, "features=64/192/256/256/192", "dense=1024/1024"),
    optimizer="momentum",
    learning_rate=0.01,
    schedule="step",
    schedule_args=("boundaries=0.5/0.75/0.9", "factor=0.1"),
    weight_decay=5e-4,
    augment=("pad_crop:padding=4", "flip", "pca_color"),
    batch_size=128,
    epochs=90,
)
PRESETS = {
    "quick": CONFIG.override(model_args=(*_FIRST, "features=16/48/64/64/48", "dense=256/256"), epochs=5),
}

if __name__ == "__main__":
    run(CONFIG, __doc__, PRESETS)
