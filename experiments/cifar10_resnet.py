"""ResNet-20 on CIFAR-10: 91.25 % in 164 epochs in the paper.

    python -m experiments.cifar10_resnet                   # the paper's recipe, for an accelerator
    python -m experiments.cifar10_resnet --preset quick    # about 16 minutes on two CPU cores
    python -m experiments.cifar10_resnet --model resnet110 --warmup-epochs 1

He et al., "Deep residual learning for image recognition" (2015), section 4.2: 64,000 steps of 128 images; the learning
rate of 0.1 is divided by 10 after 32,000 and 48,000 steps; weight decay 1e-4; images are flipped, and shifted by up to
4 pixels. That is 164 epochs of 50,000 images. Here 5,000 are held out for validation, so 164 epochs are 57,657 steps.

The quick preset (7 epochs, one seed) reaches 85.96 % on the 5,000 validation images and 86.14 % on the first 1,017 test
images, in 16 minutes on two CPU cores. The full recipe has not been run to the end.
"""

from cnn_jax.commands.experiment import run
from cnn_jax.config import Config

CONFIG = Config("cifar10_resnet").override(
    dataset="cifar10",
    model="resnet20",
    optimizer="momentum",
    learning_rate=0.1,
    schedule="step",
    schedule_args=("boundaries=0.5/0.75", "factor=0.1"),
    weight_decay=1e-4,
    augment=("pad_crop:padding=4", "flip"),
    batch_size=128,
    epochs=164,
)
PRESETS = {
    "quick": CONFIG.override(
        optimizer="nesterov", learning_rate=0.2, schedule="one_cycle", schedule_args=(), weight_decay=5e-4, epochs=7
    )
}

if __name__ == "__main__":
    run(CONFIG, __doc__, PRESETS)
