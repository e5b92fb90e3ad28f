"""Classical classifiers: nearest neighbours, and support vector machines on pixels or hand-made features.

Each is a Flax module whose variables are solved for instead of trained step by step. They are named in a config like
any model of your own, as in `model="cnn_jax.classical:hog_svm"`; then `cnn_jax.fit`, the experiments' commands,
`evaluate`, `predict` and the report work as for a network.
"""

from functools import partial

from cnn_jax.classical.hog import hog
from cnn_jax.classical.kernel import KernelSvm
from cnn_jax.classical.lbp import lbp, lbp_histograms
from cnn_jax.classical.linear import LinearSvm
from cnn_jax.classical.neighbours import NearestNeighbours
from cnn_jax.classical.solved import Examples, Solution, Solved

__all__ = [
    "Examples",
    "KernelSvm",
    "LinearSvm",
    "NearestNeighbours",
    "Solution",
    "Solved",
    "hog",
    "hog_svm",
    "knn",
    "lbp",
    "lbp_histograms",
    "lbp_svm",
    "linear_svm",
    "poly_svm",
    "rbf_svm",
    "virtual_svm",
]

knn = NearestNeighbours
linear_svm = partial(LinearSvm, features="pixels")
hog_svm = partial(LinearSvm, features="hog")
lbp_svm = partial(LinearSvm, features="lbp", cell=7)
rbf_svm = partial(KernelSvm, kernel="rbf")
poly_svm = partial(KernelSvm, kernel="poly", gamma=0.5, unit=True, c=2.0)  # ((x·s + 1)/2)⁹ for unit vectors
virtual_svm = partial(KernelSvm, kernel="poly", gamma=0.5, unit=True, c=2.0, deskew=True, shift=1)
