"""torchvision's names of the weights of Inception-v3; timm uses the same names.

torchvision's weights (77.294 / 93.450 % top-1 / top-5 accuracy, images resized to 342 and cropped to 299) have the side
head `AuxLogits`; timm's tf_in1k, tf_adv_in1k and gluon_in1k lack it: load those with `aux_heads=false`.
torchvision normalises images as for its other networks and undoes that inside this one (`transform_input`); ours has no
such step and expects `MEAN` and `STD`. So do timm's weights, except gluon_in1k, which uses the ImageNet statistics.
"""

import re

# For pixels in [0, 1], as the network itself expects them; not the usual ImageNet statistics.
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)

_LAYERS = {
    "conv1a": "Conv2d_1a_3x3",
    "conv2a": "Conv2d_2a_3x3",
    "conv2b": "Conv2d_2b_3x3",
    "conv3b": "Conv2d_3b_1x1",
    "conv4a": "Conv2d_4a_3x3",
    "output": "fc",
}
_LAYERS_OF_HEAD = {"aux": "AuxLogits", "conv1": "conv0", "conv2": "conv1", "output": "fc"}


def torchvision(path: str) -> str:
    """Returns torchvision's name of a module of `cnn_jax.models.inception_v3`.

    >>> torchvision("conv1a/bn"), torchvision("mixed7b/branch3x3_2a/conv"), torchvision("aux/conv1/conv")
    ('Conv2d_1a_3x3.bn', 'Mixed_7b.branch3x3_2a.conv', 'AuxLogits.conv0.conv')
    """
    layers = _LAYERS_OF_HEAD if path.startswith("aux/") else _LAYERS
    return ".".join(layers.get(part, re.sub("^mixed", "Mixed_", part)) for part in path.split("/"))


timm = torchvision
