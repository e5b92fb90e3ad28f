"""Recipes of the CIFAR-10 speed records: all their numbers. Nothing here imports JAX.

    name     published as              accuracy   time on an A100
    muon94   airbench94_muon           94.01 %    2.59 s
    sgd94    legacy/airbench94         94.01 %    3.83 s (3.09 s compiled)
    sgd95    legacy/airbench95         95.01 %    10.4 s
    sgd96    legacy/airbench96         96.03 %    34.7 s

The code is that of github.com/KellerJordan/cifar10-airbench, at commit f1c599c; the paper is Jordan 2024, "94% on
CIFAR-10 in 3.29 seconds on a single GPU". Weights are kept in float32 here, in float16 there.
"""

import math
from dataclasses import dataclass

from cnn_jax.errors import UserError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's pixels in [0, 1], by channel


@dataclass(frozen=True)
class Plan:
    """Lengths of a run in steps.

    Attributes:
        steps_per_epoch: whole batches; what is left over of an epoch is dropped.
        total_steps: of the run; its last epoch may be cut short.
        whitening_steps: the first ones, in which the whitening bias is trained.
    """

    steps_per_epoch: int
    total_steps: int
    whitening_steps: int

    @property
    def epochs(self) -> int:
        """Epochs that are at least begun."""
        return math.ceil(self.total_steps / self.steps_per_epoch)


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on besides its images and its seed.

    Rates are those of the loss summed over the batch, and reached where the schedule's factor is 1. The factor goes
    linearly from `start` to 1 over the share `warmup` of the steps, then linearly to `end`.

    Attributes:
        model: a speednet of `cnn_jax.models`.
        target: mean accuracy in per cent that was published.
        epochs: passes over the training images.
        batch_size: images a step.
        filter_rate: of the convolutions, by `muon_momentum`'s optimizer.
        output_rate: of the linear classifier.
        norm_rate: of the norms' biases.
        whitening_rate: of the whitening bias.
        weight_decay: L2 decay a step and an example of the batch, at the factor 1 and the same for every rate. Muon's
            filters have none.
        momentum: of SGD, Nesterov's.
        muon_momentum: of Muon, Nesterov's; None: the convolutions are trained by SGD as well.
        start, warmup, end: see above.
        whitening_epochs: after them the whitening bias stays as it is.
        whitening_falls: the whitening bias's rate falls linearly to 0 over its own epochs, instead of following the
            schedule of the others.
        lookahead: see `optimizer.lookahead`.
        label_smoothing: share of the target spread over all classes.
        translate: images are shifted by up to so many pixels.
        cutout: side in pixels of the square that is blanked; 0 for none.
        width_factor: of the filters of each group, for a smaller network of the same form.
        precision: type in which convolutions and Muon's iteration are computed; weights and norms are float32.
    """

    model: str
    target: float
    epochs: float
    batch_size: int
    filter_rate: float
    output_rate: float
    norm_rate: float
    whitening_rate: float
    weight_decay: float
    momentum: float = 0.85
    muon_momentum: float | None = None
    start: float = 1.0
    warmup: float = 0.0
    end: float = 0.0
    whitening_epochs: float = 3.0
    whitening_falls: bool = False
    lookahead: bool = False
    label_smoothing: float = 0.2
    translate: int = 2
    cutout: int = 0
    width_factor: float = 1.0
    precision: str = "bfloat16"

    def plan(self, images: int) -> Plan:
        """Returns the steps of a run on so many training images.

        Raises:
            UserError: they do not fill a batch.

        >>> RECIPES["sgd94"].plan(50_000)
        Plan(steps_per_epoch=48, total_steps=476, whitening_steps=144)
        """
        steps_per_epoch = images // self.batch_size
        if steps_per_epoch == 0:
            raise UserError(
                f"given {images} training images; expected at least a batch of {self.batch_size}; lower --batch-size"
            )
        total_steps, whitening_steps = (
            math.ceil(epochs * steps_per_epoch) for epochs in (self.epochs, self.whitening_epochs)
        )
        return Plan(steps_per_epoch, total_steps, min(whitening_steps, total_steps))


def _sgd(
    model: str,
    target: float,
    *,
    epochs: float,
    rate: float,
    decay: float,
    warmup: float,
    end: float,
    translate: int = 2,
    cutout: int = 0,
) -> Recipe:
    """A recipe whose rate and decay are for 1,024 examples and independent of the momentum, as its code has them."""
    momentum = 0.85
    scale = 1024 * (1 + 1 / (1 - momentum))
    return Recipe(
        model,
        target,
        epochs=epochs,
        batch_size=1024,
        filter_rate=rate / scale,
        output_rate=rate / scale,
        norm_rate=64 * rate / scale,
        whitening_rate=rate / scale,
        weight_decay=decay / scale,
        momentum=momentum,
        start=0.2,
        warmup=warmup,
        end=end,
        lookahead=True,
        translate=translate,
        cutout=cutout,
    )


RECIPES: dict[str, Recipe] = {
    "muon94": Recipe(
        "speednet94_muon",
        94.0,
        epochs=8,
        batch_size=2000,
        filter_rate=0.24,
        output_rate=0.67,
        norm_rate=0.053,
        whitening_rate=0.053,
        weight_decay=2e-6,
        muon_momentum=0.6,
        whitening_falls=True,
    ),
    "sgd94": _sgd("speednet94", 94.0, epochs=9.9, rate=11.5, decay=0.0153, warmup=0.23, end=0.07),
    "sgd95": _sgd("speednet95", 95.0, epochs=15, rate=10.0, decay=0.0153, warmup=0.23, end=0.07),
    "sgd96": _sgd("speednet96", 96.0, epochs=37, rate=9.0, decay=0.012, warmup=0.1, end=0.0, translate=4, cutout=12),
}
