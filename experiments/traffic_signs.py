"""Traffic signs."""

from cnn_jax.commands.experiment import run
from cnn_jax.config import Config

CONFIG = Config("traffic_signs").override(
    dataset="folder:",
    group_by=r"^(\d+)_",
    model="pattern",
    model_args=(
        "pattern=[conv3-32 bn]*2 pool [conv3-64 bn]*2 pool [conv3-128 bn]*2 pool drop0.3 fc256 bn drop0.5 fc43",
    ),
    optimizer="adamw",
    learning_rate=3e-3,
    schedule="one_cycle",
    weight_decay=1e-2,
    label_smoothing=0.1,
    augment=(
        "affine:degrees=10,scale=0.85/1.15,translate=0.1",
        "color_jitter:brightness=0.5,contrast=0.5,saturation=0.3",
    ),
    batch_size=64,
    epochs=12,
)

if __name__ == "__main__":
    run(CONFIG, __doc__)
