"""EfficientNet: Tan and Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks".

B0 (table 1): the inverted residuals of MobileNet-v2 with SiLU, 3×3 and 5×5 filters, squeeze and excitation to a quarter
of each block's input channels, stochastic depth up to 0.2 and dropout 0.2. 5,288,548 parameters for 1000 classes;
published top-1 accuracy 77.1 % (table 2). B1 to B7 scale `width`, `depth` and image size together (§3.3): B1 has
7,794,184 parameters, B7 66,347,960.

As in torchvision and timm: symmetric padding; batch normalisation with epsilon 1e-5 and momentum 0.9 (the authors use
1e-3 and 0.99); convolutions He-normal by fan-out, not truncated; classifier uniform within ±1/sqrt(K).
"""

from functools import partial

import flax.linen as nn

from cnn_jax.models.base import Entry
from cnn_jax.models.mobilenet import InvertedResidualNet, Stage

# Paper, table 1.
STAGES = (
    Stage(1, 16, 3, 1, 1),
    Stage(6, 24, 3, 2, 2),
    Stage(6, 40, 5, 2, 2),
    Stage(6, 80, 3, 3, 2),
    Stage(6, 112, 5, 3, 1),
    Stage(6, 192, 5, 4, 2),
    Stage(6, 320, 3, 1, 1),
)

efficientnet_b0 = partial(
    InvertedResidualNet,
    stages=STAGES,
    activation="silu",
    squeeze=True,
    drop_path=0.2,
    output_init=nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform"),
)

MODELS = {
    "efficientnet_b0": Entry(efficientnet_b0, "Tan and Le 2019, table 1"),
}
