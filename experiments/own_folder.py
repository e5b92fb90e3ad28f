"""Your own images: a folder with one subfolder per class, or PATH/train/CLASS and PATH/test/CLASS.

    python -m experiments.own_folder --dataset folder:PATH
    python -m experiments.own_folder --dataset folder:PATH --image-size 224 --model resnet18

Images are resized to 32×32 pixels; --image-size changes that. Without --dataset it trains on the digits that ship with
the package, so that you can try the command at once: test accuracy (360 images) 99.17 ± 0.28 % over 3 seeds, 24 seconds
on two CPU cores.
"""

from cnn_jax.commands.experiment import run
from cnn_jax.config import Config

CONFIG = Config("own_folder").override(
    dataset="digits",
    image_size=32,
    model="resnet20",
    optimizer="adamw",
    learning_rate=2e-3,
    schedule="one_cycle",
    weight_decay=1e-2,
    augment=("pad_crop:padding=4",),
    batch_size=32,
    epochs=5,
)

if __name__ == "__main__":
    run(CONFIG, __doc__)
