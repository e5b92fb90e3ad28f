"""Recipes of the CIFAR-10 speed records: all their numbers. Nothing here imports JAX.

    name        published as           accuracy   time on an A100
    muon94      airbench94_muon        94.01 %    2.59 s
    hiverge94   cifar10_speedrun       94.01 %    2.02 s
    sgd94       legacy/airbench94      94.01 %    3.83 s (3.09 s compiled)
    sgd95       legacy/airbench95      95.01 %    10.4 s
    sgd96       legacy/airbench96      96.03 %    34.7 s
    hardest96   airbench96_faster      96.00 %    27.3 s

The code is that of github.com/KellerJordan/cifar10-airbench, at commit f1c599c, and for hiverge94 of
github.com/hiverge/cifar10-speedrun, at 5cd49b1; the paper is Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single
GPU". Weights are kept in float32 here, in float16 there. Of hardest96, batches there run on over the end of an epoch,
and here the last images of an epoch that fill no batch are left out, as in all others.
"""

import math
from dataclasses import dataclass, replace

from cnn_jax.errors import UserError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's pixels in [0, 1], by channel
# Of a·s + b·s³ + c·s⁵: the steepest slope at 0 that keeps singular values s near 1 (Jordan 2024, "Muon").
QUINTIC = (3.4445, -4.7750, 2.0315)


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

    @property
    def phases(self) -> list[tuple[slice, bool]]:
        """Steps, and whether the whitening bias is trained in them; those that are not empty."""
        parts = [(slice(0, self.whitening_steps), True), (slice(self.whitening_steps, self.total_steps), False)]
        return [(steps, bias) for steps, bias in parts if steps.start < steps.stop]


@dataclass(frozen=True)
class Hardest:
    """A small network, trained beside, chooses the images of a batch: those of its greatest loss.

    Attributes:
        share: of the batch that is kept.
        widths: of its groups, each of two convolutions.
        every: it is trained, on the images that it keeps, in every so many-th step only.
    """

    share: float
    widths: tuple[int, int, int]
    every: int

    def count(self, images: int) -> int:
        """Images of a batch that are kept, one at least."""
        return max(1, int(self.share * images))


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on besides its images and its seed.

    Rates are those of the loss summed over the batch, and reached where the schedule's factor is 1. The factor goes
    linearly from `start` to 1 over the share `warmup` of the steps, then linearly to `end`.

    Attributes:
        model: a speednet of `cnn_jax.models`.
        model_args: its arguments, each key=value.
        target: mean accuracy in per cent that was published.
        epochs: passes over the training images.
        batch_size: images a step.
        filter_rate: of the convolutions, by `muon_momentum`'s optimizer.
        output_rate: of the linear classifier.
        norm_rate: of the norms' biases.
        whitening_rate: of the whitening bias.
        weight_decay: L2 decay a step and an example of the batch, at the factor 1 and the same for every rate. Muon's
            filters have another, see `muon_decay`.
        momentum: of SGD, Nesterov's.
        muon_momentum: of Muon, Nesterov's; None: the convolutions are trained by SGD as well.
        muon_decay: the convolutions decay under Muon, too: by `weight_decay` times their rate.
        quintic: a, b, c of Muon's iteration, see `optimizer.newton_schulz`.
        rescale_every: first and growth: Muon sets the norms of the convolutions where first + int(growth·progress)
            steps have gone since it last did, or since the start; progress goes to 1 at the last step.
        start, warmup, end: see above.
        whitening_images: the first ones, from which the whitening is taken.
        whitening_epochs: after them the whitening bias stays as it is.
        whitening_falls: the whitening bias's rate falls linearly to 0 over its own epochs, instead of following the
            schedule of the others.
        lookahead: see `optimizer.lookahead`.
        label_smoothing: share of the target spread over all classes.
        translate: images are shifted by up to so many pixels.
        cutout: side in pixels of the square that is blanked; 0 for none.
        brightness: up to so much is added to the normalized pixels of an image, or taken off.
        contrast: then they are multiplied by 1 and up to so much more or less.
        hardest: choice of the images of a batch that the network is trained on; None: all of them.
        centre: weight in evaluation of an image that is not moved, see `program.view_logits`.
        uncertain: share of the test images that is seen in six views, see `program.accuracy`.
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
    model_args: tuple[str, ...] = ()
    momentum: float = 0.85
    muon_momentum: float | None = None
    muon_decay: bool = False
    quintic: tuple[float, float, float] = QUINTIC
    rescale_every: tuple[int, int] = (1, 0)
    start: float = 1.0
    warmup: float = 0.0
    end: float = 0.0
    whitening_images: int = 5000
    whitening_epochs: float = 3.0
    whitening_falls: bool = False
    lookahead: bool = False
    label_smoothing: float = 0.2
    translate: int = 2
    cutout: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    hardest: Hardest | None = None
    centre: float = 0.5
    uncertain: float = 1.0
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

    def small(self, hardest: Hardest) -> "Recipe":
        """The recipe of the small network of such a choice. Its whitening bias stays 0."""
        widths = "/".join(map(str, hardest.widths))
        return replace(
            self, model="speednet94", model_args=(f"widths={widths}", "momentum=0.9"), lookahead=False, hardest=None
        )


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


_SGD96 = _sgd("speednet96", 96.0, epochs=37, rate=9.0, decay=0.012, warmup=0.1, end=0.0, translate=4, cutout=12)

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
    "hiverge94": Recipe(
        "speednet94_muon",
        94.0,
        model_args=("activation=silu", "momentum=0.5566"),
        epochs=7.59,
        batch_size=1536,
        filter_rate=0.205,
        output_rate=0.5415,
        norm_rate=0.0573,
        whitening_rate=0.0573,
        weight_decay=1.0418e-6,
        momentum=0.825,
        muon_momentum=0.655,
        muon_decay=True,
        quintic=(3.4576, -4.7391, 2.0843),
        rescale_every=(2, 15),
        whitening_images=960,
        whitening_epochs=0.19,
        whitening_falls=True,
        label_smoothing=0.09,
        brightness=0.1399,
        contrast=0.1308,
        centre=1 / 3,
        uncertain=0.25,
    ),
    "sgd94": _sgd("speednet94", 94.0, epochs=9.9, rate=11.5, decay=0.0153, warmup=0.23, end=0.07),
    "sgd95": _sgd("speednet95", 95.0, epochs=15, rate=10.0, decay=0.0153, warmup=0.23, end=0.07),
    "sgd96": _SGD96,
    # Its code means to fix the whitening bias after three epochs, but never does.
    "hardest96": replace(
        _SGD96, epochs=45, whitening_epochs=45, hardest=Hardest(share=0.5, widths=(32, 64, 64), every=4)
    ),
}
