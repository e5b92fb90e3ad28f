"""torchvision's names of the weights of `googlenet_torchvision`; timm has no GoogLeNet.

The public weights (69.778 / 89.530 % top-1 / top-5 accuracy, images resized to 256 and cropped to 224) have auxiliary
heads that were never trained. torchvision normalises images as for its other networks and undoes that inside this one
(`transform_input`); ours has no such step and expects `MEAN` and `STD`.
"""

# For pixels in [0, 1], as the network itself expects them; not the usual ImageNet statistics.
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)

_LAYERS = {
    "conv2_reduce": "conv2",
    "conv2": "conv3",
    "branch1x1": "branch1",
    "branch3x3_1": "branch2.0",
    "branch3x3_2": "branch2.1",
    "branch5x5_1": "branch3.0",
    "branch5x5_2": "branch3.1",
    "branch_pool": "branch4.1",
    "output": "fc",
}
_LAYERS_OF_HEADS = {"fc": "fc1", "output": "fc2"}


def torchvision(path: str) -> str:
    """Returns torchvision's name of a module of `cnn_jax.models.googlenet`.

    >>> torchvision("inception3a/branch3x3_2/conv"), torchvision("aux1/output"), torchvision("output")
    ('inception3a.branch2.1.conv', 'aux1.fc2', 'fc')
    """
    layers = _LAYERS_OF_HEADS if path.startswith("aux") else _LAYERS
    return ".".join(layers.get(part, part) for part in path.split("/"))
