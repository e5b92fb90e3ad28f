"""Recipes of the CIFAR-10 speed records, with all their numbers. Nothing here imports JAX.

    name        published as           accuracy   time on an A100
    muon94      airbench94_muon        94.01 %    2.59 s
    hiverge94   cifar10_speedrun       94.01 %    2.02 s
    sgd94       legacy/airbench94      94.01 %    3.83 s (3.09 s compiled)
    sgd95       legacy/airbench95      95.01 %    10.4 s
    sgd96       legacy/airbench96      96.03 %    34.7 s
    hardest96   airbench96_faster      96.00 %    27.3 s

The original code is github.com/KellerJordan/cifar10-airbench at commit f1c599c, and for hiverge94
github.com/hiverge/cifar10-speedrun at 5cd49b1; the paper is Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single
GPU". Two things differ. Weights are float32 here and float16 there. The batches of hardest96 span the ends of epochs
there; here an incomplete last batch is dropped, as in all other recipes.
"""

import math
from dataclasses import dataclass, replace

from cnn_jax.errors import UserError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's pixels in [0, 1], by channel
# Of a·s + b·s³ + c·s⁵, with the steepest slope at 0 that keeps singular values s near 1 (Jordan 2024, "Muon").
QUINTIC = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class Plan:
    """Lengths of a run in steps.

    Attributes:
        steps_per_epoch: whole batches; the rest of an epoch is dropped.
        total_steps: steps of the run; its last epoch may be cut short.
        whitening_steps: the number of first steps, in which the whitening bias is trained.
    """

    steps_per_epoch: int
    total_steps: int
    whitening_steps: int

    @property
    def epochs(self) -> int:
        """Number of epochs, counting a last one that is cut short."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    @property
    def phases(self) -> list[tuple[slice, bool]]:
        """The non-empty ranges of steps, each with whether the whitening bias is trained in it."""
        parts = [(slice(0, self.whitening_steps), True), (slice(self.whitening_steps, self.total_steps), False)]
        return [(steps, bias) for steps, bias in parts if steps.start < steps.stop]


@dataclass(frozen=True)
class Hardest:
    """A small network, trained alongside, keeps the images of a batch with its largest losses.

    Attributes:
        share: of the batch that is kept.
        widths: of its groups of two convolutions each.
        every: the small network is trained, on the images that it keeps, once in this many steps.
    """

    share: float
    widths: tuple[int, int, int]
    every: int

    def count(self, images: int) -> int:
        """Returns how many images of a batch are kept, at least one."""
        return max(1, int(self.share * images))


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on besides its images and its seed.

    Rates are for the loss summed over the batch, at the peak of the schedule. The schedule's factor rises linearly from
    `start` to 1 over the share `warmup` of the steps, then falls linearly to `end`.

    Attributes:
        model: a speednet of `cnn_jax.models`.
        model_args: its arguments, each key=value.
        target: published mean accuracy, in per cent.
        epochs: passes over the training images.
        batch_size: images per step.
        filter_rate: of the convolutions, under Muon or SGD (see `muon_momentum`).
        output_rate: of the linear classifier.
        norm_rate: of the norms' biases.
        whitening_rate: of the whitening bias.
        weight_decay: L2 decay per step and example of the batch at the peak of the schedule, the same for every rate.
            Filters under Muon differ, see `muon_decay`.
        momentum: of SGD, Nesterov.
        muon_momentum: of Muon, Nesterov; None trains the convolutions by SGD as well.
        muon_decay: whether the convolutions decay under Muon, by `weight_decay` times their rate.
        quintic: a, b, c of Muon's iteration, see `optimizer.newton_schulz`.
        rescale_every: (first, growth): Muon sets the norms of the convolutions when first + int(growth·progress) steps
            have passed since it last did, or since the start; progress reaches 1 at the last step.
        start, warmup, end: see above.
        whitening_images: number of training images, the first, that the whitening is computed from.
        whitening_epochs: epochs in which the whitening bias is trained; after them it is fixed.
        whitening_falls: whether the rate of the whitening bias falls linearly to 0 over these epochs, instead of
            following the common schedule.
        lookahead: see `optimizer.lookahead`.
        label_smoothing: share of the target that is spread over all classes.
        translate: images are shifted by up to this many pixels.
        cutout: side of the blanked square in pixels; 0 for none.
        brightness: normalized pixels are shifted by a number drawn per image from ±brightness.
        contrast: after that, they are scaled by one from 1 ± contrast.
        hardest: how to choose the images of a batch to train on; None trains on all.
        centre: weight of the unshifted image in evaluation, see `program.view_logits`.
        uncertain: share of the test images that are classified in six views, see `program.accuracy`.
        width_factor: multiplies the filters of each group, for a smaller network of the same form.
        precision: type of the convolutions and of Muon's iteration; weights and norms are float32.
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
        """Returns the lengths of a run on `images` training images.

        Raises:
            UserError: they do not fill a batch.

        >>> RECIPES["sgd94"].plan(50_000)
        Plan(steps_per_epoch=48, total_steps=476, whitening_steps=144)
        """
        steps_per_epoch = images // self.batch_size
        if steps_per_epoch == 0:
            raise UserError(f"{images} training images do not fill a batch of {self.batch_size}: lower `batch_size`")
        total_steps, whitening_steps = (
            math.ceil(epochs * steps_per_epoch) for epochs in (self.epochs, self.whitening_epochs)
        )
        return Plan(steps_per_epoch, total_steps, min(whitening_steps, total_steps))

    def small(self, hardest: Hardest) -> "Recipe":
        """Returns the recipe of the small network, whose whitening bias stays 0."""
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
    """Makes a recipe from a rate and decay for 1,024 examples, independent of momentum, as in the original code."""
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
    # The original code means to fix the whitening bias after three epochs, but never does.
    "hardest96": replace(
        _SGD96, epochs=45, whitening_epochs=45, hardest=Hardest(share=0.5, widths=(32, 64, 64), every=4)
    ),
}
