"""Classical classifiers: nearest neighbours, and support vector machines on pixels or hand-made features.

    python -m experiments.classical --preset hog_svm                  # on MNIST
    python -m experiments.classical --preset knn --model-args k=3 refit=true
    python -m experiments.classical --preset rbf_svm --train-split 'train[:10000]'
    python -m experiments.classical --preset hog_svm --dataset cifar10

Nothing is trained step by step, so the flags of optimizer, schedule and length have no effect. `refit=true` solves once
more with the validation images. The SVMs with kernels need scikit-learn: pip install 'cnn_jax[classical]'.
"""

from cnn_jax.commands.experiment import run
from cnn_jax.config import Config

CONFIG = Config("classical").override(dataset="mnist", normalize="none", model="cnn_jax.classical:hog_svm")
NAMES = ("knn", "linear_svm", "hog_svm", "lbp_svm", "rbf_svm", "poly_svm", "virtual_svm")
PRESETS = {name: CONFIG.override(model=f"cnn_jax.classical:{name}") for name in NAMES}

if __name__ == "__main__":
    run(CONFIG, __doc__, PRESETS)
