"""torchvision's and timm's names of the weights of ConvNeXt of any size."""

import re

_BLOCK = re.compile(r"stage(\d+)_block(\d+)/(.+)")
_DOWN = re.compile(r"stage(\d+)_(norm|conv)")
_DOWN_LAYERS = {"norm": 0, "conv": 1}
_TORCHVISION = {
    "stem_conv": "features.0.0",
    "stem_norm": "features.0.1",
    "norm": "classifier.0",
    "output": "classifier.2",
}
_TORCHVISION_LAYERS = {"conv": "block.0", "norm": "block.2", "fc1": "block.3", "fc2": "block.5"}
_TIMM = {"stem_conv": "stem.0", "stem_norm": "stem.1", "norm": "head.norm", "output": "head.fc"}
_TIMM_LAYERS = {"conv": "conv_dw", "norm": "norm", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "layer_scale": "gamma"}


def torchvision(path: str) -> str:
    """Returns torchvision's name of a module, or of a layer scale, of `cnn_jax.models.convnext`.

    >>> torchvision("stage1_block1/fc2"), torchvision("stage2_conv"), torchvision("stage4_block1/layer_scale")
    ('features.1.0.block.5', 'features.2.1', 'features.7.0.layer_scale')
    """
    if block := _BLOCK.fullmatch(path):
        stage, number, layer = block.groups()
        return f"features.{2 * int(stage) - 1}.{int(number) - 1}.{_TORCHVISION_LAYERS.get(layer, layer)}"
    if down := _DOWN.fullmatch(path):
        return f"features.{2 * int(down[1]) - 2}.{_DOWN_LAYERS[down[2]]}"
    return _TORCHVISION[path]


def timm(path: str) -> str:
    """Returns timm's name of a module, or of a layer scale, of `cnn_jax.models.convnext`.

    >>> timm("stage1_block1/fc2"), timm("stage2_conv"), timm("stage4_block1/layer_scale")
    ('stages.0.blocks.0.mlp.fc2', 'stages.1.downsample.1', 'stages.3.blocks.0.gamma')
    """
    if block := _BLOCK.fullmatch(path):
        stage, number, layer = block.groups()
        return f"stages.{int(stage) - 1}.blocks.{int(number) - 1}.{_TIMM_LAYERS[layer]}"
    if down := _DOWN.fullmatch(path):
        return f"stages.{int(down[1]) - 1}.downsample.{_DOWN_LAYERS[down[2]]}"
    return _TIMM[path]
