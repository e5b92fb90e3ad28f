"""All parts of a run, put together from its config and from nothing else; nothing is written here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.arguments import naming
from cnn_jax.config import Config
from cnn_jax.data import Pipeline, Preprocess, Source, Splits, default_splits, make_pipeline, open_source, parse_split
from cnn_jax.data.augment import PER_BATCH, make_augment, parse_spec
from cnn_jax.data.pipeline import is_resident
from cnn_jax.errors import UserError, unknown
from cnn_jax.inspect.summary import count_flops, count_parameters
from cnn_jax.models import MODELS, build
from cnn_jax.models.ensembles import Committee
from cnn_jax.optim.optimizers import Optimizer, get_optimizer_spec, make_optimizer
from cnn_jax.optim.schedules import SCHEDULES
from cnn_jax.tasks.losses import LOSSES
from cnn_jax.training.evaluation import Evaluator
from cnn_jax.training.loop import Plan, make_plan
from cnn_jax.training.members import train_members
from cnn_jax.training.parallel import Parallel, Step, make_parallel
from cnn_jax.training.runtime import COMPILE_QUICKLY
from cnn_jax.training.state import TrainState, Tree, init_state
from cnn_jax.training.step import Augment, Loss, make_eval_step, make_train_step
from cnn_jax.training.transfer import freeze_until, initial_variables, rate_groups


@dataclass(frozen=True)
class Experiment:
    """All parts of a run. Of one that goes on from a checkpoint, the leaves of `state` are `jax.ShapeDtypeStruct`."""

    config: Config
    parallel: Parallel
    sources: Mapping[str, Source]  # "train", "validation", "test"
    data: Mapping[str, Pipeline]
    preprocess: Preprocess
    augment: Augment
    loss: Loss
    model: nn.Module
    optimizer: Optimizer
    plan: Plan
    state: TrainState
    parameters: int
    flops_per_image: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of class k at position k."""
        return self.sources["train"].class_names

    @property
    def train_step(self) -> Step:
        """The pure step `(state, batch) -> (state, metrics)`."""
        return self.train_step_of(*of_members(self.config))

    def train_step_of(self, *own: jax.Array) -> Step:
        """The step of `own`, seeds and rates as `of_members` has them; given as arguments of a program, they stay out
        of it, and it is found in the cache for any others."""
        optim = self.config.optim

        def make(seed: int | jax.Array, learning_rate: jax.Array | None = None) -> Step:
            return make_train_step(
                self.model,
                self.optimizer.tx if learning_rate is None else self.optimizer.at(learning_rate),
                self.loss,
                self.augment,
                self.preprocess.normalize,
                seed=seed,
                label_smoothing=optim.label_smoothing,
                accumulate=optim.accumulate,
                ema_decay=optim.ema_decay,
                frozen=self.optimizer.frozen,
                axis_name=self.parallel.axis_name,
            )

        if self.config.train.members == 1:
            (seeds,) = own
            return make(seeds[0])
        return train_members(make, *own)

    def evaluator(self, split: str) -> Evaluator:
        """Evaluates variables on "train", "validation" or "test"."""
        normalize, classes = self.preprocess.normalize, len(self.class_names)
        network = self.model if self.config.train.members == 1 else Committee(self.model)
        step = make_eval_step(network, self.loss, normalize, classes, axis_name=self.parallel.axis_name)
        return Evaluator(step, self.data[split], self.parallel)


def of_members(config: Config) -> tuple[jax.Array, ...]:
    """What the M networks that are trained at once have of their own: seeds (M,) uint32, those after the run's seed.

    Or the run's seed for all, and learning rates (M,) float32, where several are given.
    """
    members, rates = config.train.members, config.optim.member_learning_rates
    if len(rates) > 1:
        return jnp.asarray([config.train.seed] * members, jnp.uint32), jnp.asarray(rates, jnp.float32)
    return (jnp.asarray(range(config.train.seed, config.train.seed + members), jnp.uint32),)


def _loss(name: str) -> Loss:
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    return LOSSES[name]


def make_experiment(config: Config, resumed: Preprocess | None = None) -> Experiment:
    """Opens the data and builds model, optimizer and state; writes nothing.

    Args:
        config: of the run.
        resumed: the preprocessing of the same run, when it goes on from a checkpoint: then the state here is shapes
            only, and weights to start from are not read again.

    Raises:
        UserError: whatever is wrong with the config, in one line; before images are read, unless it lies in these.
    """
    optim = config.optim
    parallel = make_parallel(config.train.parallel, config.train.devices, config.data.batch_size, optim.accumulate)
    loss = _loss(optim.loss)
    _known_names(config)
    sources = _open_sources(config)
    train = sources["train"]
    augment = _augment(config, parallel, train)
    with naming("--model-args"):
        model = _model(config, len(train.class_names), parallel)
    plan = make_plan(config, len(train), scan=_scans(parallel, is_resident(train, config.data.pipeline)))
    optimizer = _optimizer(config, plan, model, train.image_shape)
    members = of_members(config)

    def init(seed: jax.Array, learning_rate: jax.Array | None = None, *, variables: Tree = None) -> TrainState:
        tx = optimizer.tx if learning_rate is None else optimizer.at(learning_rate)
        return init_state(model, tx, train.image_shape, seed, ema=optim.ema_decay is not None, variables=variables)

    # A model that cannot take these images, or a rule for no parameter, is found out here.
    state = jax.eval_shape(lambda: _states(init, *members))
    if resumed is not None:
        preprocess = replace(resumed, image_shape=train.image_shape)
    else:
        variables, published = initial_variables(config, model, train.image_shape)
        preprocess = published or Preprocess.fit(train, config.data.normalize)
        start = partial(_states, partial(init, variables=variables))
        if variables is None:  # else they would be constants of the program
            start = jax.jit(start, compiler_options=COMPILE_QUICKLY)
        state = start(*members)
    return Experiment(
        config,
        parallel,
        sources,
        {name: _pipeline(config, name, source, len(parallel.devices)) for name, source in sources.items()},
        preprocess,
        augment,
        loss,
        model,
        optimizer,
        plan,
        state,
        parameters=count_parameters(state.params) // config.train.members,
        flops_per_image=count_flops(model, train.image_shape),
    )


def _augment(config: Config, parallel: Parallel, train: Source) -> Augment:
    specs, size = config.data.augment, config.data.batch_size
    with naming("--augment"):
        augment = make_augment(specs, len(train.class_names))
        batch = (jax.ShapeDtypeStruct((size, *train.image_shape), jnp.uint8), jax.ShapeDtypeStruct((size,), jnp.int32))
        jax.eval_shape(augment, jax.random.key(0), *batch)  # values that these images cannot take are found out here
    mixing = [spec for spec in specs if parse_spec(spec)[0] in PER_BATCH]
    if mixing and parallel.kind == "pmap" and len(parallel.devices) > 1:
        raise UserError(
            f"given --augment {mixing[0]} with --parallel pmap on {len(parallel.devices)} devices; expected jit, where "
            "images of the whole batch are mixed; drop --parallel"
        )
    return augment


def _model(config: Config, classes: int, parallel: Parallel) -> nn.Module:
    dtype = jnp.dtype(config.model.precision)
    return build(config.model.model, classes, dtype=dtype, axis_name=parallel.axis_name, args=config.model.model_args)


def _optimizer(config: Config, plan: Plan, model: nn.Module, image_shape: tuple[int, int, int]) -> Optimizer:
    optim, rates = config.optim, config.optim.member_learning_rates
    if not all(0 < rate < float("inf") for rate in rates):
        given = " ".join(map(str, rates))
        raise UserError(f"given --member-learning-rates {given}; expected finite numbers above 0; change it")
    if rates and optim.head_learning_rate is not None:
        raise UserError("given --member-learning-rates and --head-learning-rate; expected one of them; drop the other")
    optimizer = make_optimizer(
        optim.optimizer,
        learning_rate=rates[0] if rates else optim.learning_rate,
        args=optim.optimizer_args,
        schedule=optim.schedule,
        schedule_args=optim.schedule_args,
        warmup_steps=round(optim.warmup_epochs * plan.steps_per_epoch),
        total_steps=plan.total_steps,
        weight_decay=optim.weight_decay,
        decay_all=optim.decay_all,
        clip_norm=optim.clip_norm,
        freeze=optim.freeze,
        freeze_until=freeze_until(optim, plan.steps_per_epoch),
        rate_groups=rate_groups(optim, model, image_shape),
    )
    also = f"; of the other networks {', '.join(f'{rate:g}' for rate in rates[1:])}" if len(rates) > 1 else ""
    return replace(optimizer, description=optimizer.description + also)


def _states(init: Callable[..., TrainState], *members: jax.Array) -> TrainState:
    """The state of one network, or those of several along a new first axis."""
    return jax.vmap(init)(*members) if len(members[0]) > 1 else init(*(values[0] for values in members))


def _known_names(config: Config) -> None:
    """Refuses a mistyped name before any data are read."""
    for what, name, known in (("model", config.model.model, MODELS), ("schedule", config.optim.schedule, SCHEDULES)):
        if name not in known:
            raise unknown(what, name, known)
    get_optimizer_spec(config.optim.optimizer)


def _open_sources(config: Config) -> dict[str, Source]:
    data = config.data
    chosen = {"train": data.train_split, "validation": data.validation_split, "test": data.test_split}
    usual = Splits() if all(chosen.values()) else default_splits(data.dataset, data.data_dir)
    splits = {name: split or getattr(usual, name) for name, split in chosen.items()}
    size_and_kind = {"image_size": data.image_size, "channels": data.channels}
    opened = partial(open_source, data.dataset, data_dir=data.data_dir, **size_and_kind)
    sources = {name: opened(split, skip_bad_images=data.skip_bad_images) for name, split in splits.items()}
    if len(names := sources["train"].class_names) < 2:
        kind = "class folders; add one" if data.dataset.startswith("folder:") else "classes; take another set"
        raise UserError(f"given {data.dataset}, whose only class is {', '.join(names)!r}; expected at least two {kind}")
    sizes = {}  # of whole splits, without opening those that have no part, and bad images included
    for part in (part for split in splits.values() for part in _parts(split)):
        name = part.partition("[")[0]
        if name not in (part, *sizes):
            sizes[name] = len(opened(name))
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if _overlap(splits[one], splits[other], sizes):
            raise UserError(
                f"given {splits[one]} as {one} split and {splits[other]} as {other} split, which share images; "
                f"expected none in common; give another --{one}-split or --{other}-split"
            )
    return sources


def _overlap(one: str, other: str, sizes: Mapping[str, int]) -> bool:
    """Whether two splits, or sums of splits, share images; `all` shares some with every other."""
    return any(_parts_overlap(a, b, sizes) for a in _parts(one) for b in _parts(other))


def _parts(split: str) -> list[str]:
    return [part.strip() for part in split.split("+")]


def _parts_overlap(one: str, other: str, sizes: Mapping[str, int]) -> bool:
    name, other_name = one.partition("[")[0], other.partition("[")[0]
    if "all" in (name, other_name):
        return True
    if name != other_name:
        return False
    if name in (one, other):
        return True
    (_, rows), (_, other_rows) = parse_split(one, sizes), parse_split(other, sizes)
    return rows.start < other_rows.stop and other_rows.start < rows.stop


def _pipeline(config: Config, name: str, source: Source, devices: int) -> Pipeline:
    size = config.data.batch_size
    if name != "train":  # the last batch is padded, so any size that the devices divide is exact
        size = -(-min(config.data.eval_batch_size, len(source)) // devices) * devices
    data = config.data
    return make_pipeline(source, batch_size=size, seed=config.train.seed, mode=data.pipeline, workers=data.workers)


def _scans(parallel: Parallel, resident: bool) -> bool:
    """Whether steps are compiled together: where loops are fast (not on CPU) and items are small (indices)."""
    return parallel.devices[0].platform != "cpu" and resident
