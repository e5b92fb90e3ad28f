"""torchvision's names of the weights of `alexnet_one_tower`; timm has no AlexNet.

The public weights reach 56.522 / 79.066 % top-1 / top-5 accuracy, with images resized to 256 and cropped to 224. Image
sizes whose pool5 is not 6×6 need `head_map=6`.
"""

_LAYERS = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "output": "classifier.6",
}


def torchvision(path: str) -> str:
    """Returns torchvision's name of a module of `cnn_jax.models.alexnet`.

    >>> torchvision("conv2"), torchvision("output")
    ('features.3', 'classifier.6')
    """
    return _LAYERS[path]
