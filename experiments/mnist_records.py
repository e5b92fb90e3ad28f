"""Records on MNIST: one network, a committee, and the fewest parameters that reach 99 %.

    python -m experiments.mnist_records --preset single       # aims at 99.7 %
    python -m experiments.mnist_records --preset committee    # seven of them, aims at 99.8 %; for an accelerator
    python -m experiments.mnist_records --preset smallest     # 2,778 parameters, aims at 99 %

Published: 99.77 % by a committee of 35 (Cireşan et al. 2012). None of the presets has been run to the end. On the
5,000 images that select weights, width=8 (818 parameters) had 97.3 % after ten epochs, width=12 (1,654) 98.1 %.
"""

import flax.linen as nn
import jax

from cnn_jax.commands.experiment import run
from cnn_jax.config import Config
from cnn_jax.layers import GlobalAvgPool, MaxPool, images
from cnn_jax.models.base import NormalizedClassifier


class SharedCnn(NormalizedClassifier):
    """One 3×3 filter bank, used four times: the layers share its weights, and each has its own normalisation."""

    width: int = 16
    kernel_init: str = "he_normal"

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32."""
        conv, norm = self.conv(use_bias=False, padding="SAME"), self.norm(train)
        first, shared = conv(self.width, (3, 3), name="first"), conv(self.width, (3, 3), name="shared")
        x = nn.relu(norm(name="bn0")(first(images(x_BxHxWxC, self.dtype))))
        for stage in (0, 1):
            x = MaxPool(name=f"pool{stage}")(x)
            for layer in (1, 2):
                x = nn.relu(norm(name=f"bn{2 * stage + layer}")(shared(x)))
        return self.head(GlobalAvgPool(name="gap")(x))


_NET = "pattern=[conv3-32pvalid bn]*2 pool drop0.2 [conv3-64pvalid bn]*2 pool drop0.3 conv3-128pvalid bn drop0.4 fc10"
CONFIG = Config("mnist_records").override(
    dataset="mnist",
    image_size=28,
    model="pattern",
    model_args=(_NET,),
    optimizer="adam",
    learning_rate=3e-3,
    schedule="one_cycle",
    augment=("affine:degrees=12,scale=0.9/1.1,translate=0.08,shear=10", "elastic:alpha=20,sigma=4"),
    ema_decay=0.999,
    epochs=30,
)
_SMALL = {"model": "experiments.mnist_records:SharedCnn", "learning_rate": 1e-2, "epochs": 40, "ema_decay": None}
PRESETS = {
    "single": CONFIG,
    "committee": CONFIG.override(members=7),
    "smallest": CONFIG.override(**_SMALL, augment=("affine:degrees=8,scale=0.95/1.05,translate=0.05",)),
}

if __name__ == "__main__":
    run(CONFIG, __doc__, PRESETS)
