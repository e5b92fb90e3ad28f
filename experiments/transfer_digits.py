"""Learning from few labels: LeNet-5 from MNIST, transferred to 50 of the small digits that ship with the package.

    python -m experiments.mnist_lenet5
    python -m experiments.transfer_digits                        # fine-tunes all layers, the early ones slowly
    python -m experiments.transfer_digits --preset probe         # a new classifier on frozen features
    python -m experiments.transfer_digits --preset gradual       # unfreezes layers one after another
    python -m experiments.transfer_digits --preset scratch       # without MNIST
    python -m experiments.transfer_digits --dataset folder:PATH --train-split "train[:100]"

Yosinski et al., "How transferable are features in deep neural networks?" (2014). `benchmarks.transfer_labels` plots
accuracy against the number of labels. Weights are not selected by validation, which would use further labels. Test
accuracy with 50 labels, 3 seeds: 85.7 ± 1.0 %; probe 91.9 ± 0.6 %; gradual 86.5 ± 0.2 %; scratch 76.9 ± 0.8 %.
"""

from cnn_jax.commands.experiment import run
from cnn_jax.config import Config

CONFIG = Config("transfer_digits").override(
    dataset="digits",
    image_size=28,
    train_split="train[:50]",
    model="lenet5",
    init_from="runs/mnist_lenet5",
    init_head="replace",
    optimizer="adam",
    learning_rate=1e-3,
    layer_decay=0.5,
    schedule="cosine",
    augment=("affine:degrees=10,translate=0.1",),
    batch_size=50,
    steps=200,
    epochs=None,
    eval_every=50,
    select="last",
)
PRESETS = {
    "probe": CONFIG.override(layer_decay=None, freeze="^(?!output/)", learning_rate=1e-2),
    "gradual": CONFIG.override(layer_decay=None, freeze_until=("^conv=100", "^fc1=50", "^fc2=25")),
    "scratch": CONFIG.override(init_from=None, layer_decay=None, learning_rate=2e-3),
}

if __name__ == "__main__":
    run(CONFIG, __doc__, PRESETS)
