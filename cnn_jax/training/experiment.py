"""Builds all parts of a run from its config and from objects given by the caller; writes nothing."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn_jax.arguments import naming
from cnn_jax.config import NO_TEST, Config
from cnn_jax.data import (
    Pipeline,
    Preprocess,
    Source,
    Splits,
    default_splits,
    make_pipeline,
    open_source,
    parse_split,
)
from cnn_jax.data.augment import PER_BATCH, make_augment, parse_spec
from cnn_jax.data.image_file import Levels
from cnn_jax.data.memory import check_memory
from cnn_jax.data.pipeline import is_resident
from cnn_jax.data.sources import example_spec, read_labels
from cnn_jax.errors import UserError, unknown
from cnn_jax.inspect.summary import count_flops, count_parameters
from cnn_jax.models import MODELS
from cnn_jax.models.ensembles import Committee, member
from cnn_jax.models.named import check_module, make_model, variable_shapes
from cnn_jax.ops.plain import plain_operations
from cnn_jax.optim.optimizers import (
    Optimizer,
    check_update,
    from_transformation,
    get_optimizer_spec,
    make_optimizer,
)
from cnn_jax.optim.parameter_groups import freeze_until_steps, frozen_rules, parse_rule
from cnn_jax.optim.schedules import SCHEDULES
from cnn_jax.storage.file_names import readable
from cnn_jax.tasks import Task, check_labelled, make_task
from cnn_jax.training.compiled import call_traced
from cnn_jax.training.evaluation import Evaluator
from cnn_jax.training.gauges import Gauges, make_gauges
from cnn_jax.training.loop import Plan, make_plan
from cnn_jax.training.members import evaluate_members, member_hyperparameters, stack_members, train_members
from cnn_jax.training.parallel import Parallel, make_parallel
from cnn_jax.training.state import TrainState, Tree, init_state
from cnn_jax.training.step import Augment, EvalStep, Step, make_eval_step, make_train_step
from cnn_jax.training.transfer import Origin, initial_variables, rate_groups


@dataclass(frozen=True)
class Given:
    """Objects given by the caller; those that are None are made from the names in the config.

    Attributes:
        model: a Linen module.
        optimizer: an Optax transformation.
        sources: "train", "validation" and optionally "test".
        task: see `cnn_jax.tasks`.
    """

    model: nn.Module | None = None
    optimizer: optax.GradientTransformation | None = None
    sources: Mapping[str, Source] | None = None
    task: Task | None = None


@dataclass(frozen=True)
class Experiment:
    """All parts of a run. If it resumes from a checkpoint, the leaves of `state` are `jax.ShapeDtypeStruct`s.

    `origin` says what was taken from `init_from`, in words; it is empty if nothing was.
    """

    config: Config
    parallel: Parallel
    sources: Mapping[str, Source]  # "train", "validation" and optionally "test"
    data: Mapping[str, Pipeline]
    preprocess: Preprocess
    augment: Augment
    task: Task
    model: nn.Module
    optimizer: Optimizer
    plan: Plan
    state: TrainState
    parameters: int
    flops_per_image: int
    origin: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.sources["train"].class_names

    @property
    def network(self) -> Any:
        """The network that is the run's result: the model, or the committee of its members."""
        return self.model if self.config.committee == 1 else Committee(self.model, self.task.combine)

    @property
    def train_step(self) -> Step:
        """The pure step `(state, batch) -> (state, sums)`."""
        step = make_train_step(
            self.model,
            self.task,
            self.optimizer,
            self.augment,
            self.preprocess.normalize_batch,
            accumulate=self.config.optim.accumulate,
            ema_decay=self.config.optim.ema_decay,
            axis_name=self.parallel.axis_name,
        )
        if self.config.train.members == 1:
            return step
        return train_members(step, apart=self.config.compares_rates)

    @property
    def gauges(self) -> Gauges:
        """The gauges of one network, see `make_gauges`."""
        return make_gauges(
            self.model,
            self.task,
            self.optimizer,
            self.preprocess.normalize_batch,
            accumulate=self.config.optim.accumulate,
            axis_name=self.parallel.axis_name,
        )

    def evaluator(self, split: str) -> Evaluator:
        """Returns the evaluator of `network` on "train", "validation" or "test"."""
        return Evaluator(self._eval_step, self.data[split], self.parallel)

    def validator(self) -> Evaluator:
        """Returns the evaluator of the variables of a state on "validation": of each network, if rates are compared."""
        step = evaluate_members(self._eval_step) if self.config.compares_rates else self._eval_step
        return Evaluator(step, self.data["validation"], self.parallel)

    @property
    def _eval_step(self) -> EvalStep:
        normalize, axis_name = self.preprocess.normalize_batch, self.parallel.axis_name
        return make_eval_step(self.network, self.task, normalize, axis_name=axis_name)

    def kept(self, variables: Tree, best: int) -> Tree:
        """Returns the variables of `network` from those of a state; `best`: the best member, if rates are compared."""
        return member(variables, best) if self.config.compares_rates else variables


def make_experiment(config: Config, given: Given = Given(), resumed: Preprocess | None = None) -> Experiment:
    """Opens the data and builds model, optimizer and state; writes nothing.

    Args:
        config: the run's config.
        given: objects that replace names in the config.
        resumed: the run's preprocessing if it resumes from a checkpoint: then the state holds only shapes, and
            `init_from` is not read again.

    Raises:
        UserError: a mistake in the config or the objects; found before images are read, unless it lies in the images.
    """
    optim = config.optim
    parallel = make_parallel(config.train.parallel, config.train.devices, config.data.batch_size, optim.accumulate)
    check_names(config, given)
    sources = sources_of(config, given, "in use" if resumed is None else resumed.levels)
    train = sources["train"]
    _check_class_names(train)
    _check_memory(config, parallel, train)
    task = given.task or make_task(optim, train.class_names)
    for source in sources.values():
        check_labelled(task, source)
    augment = _augment(config, parallel, train, task)
    model = _model(config, given, task, parallel)
    plan = make_plan(config, len(train), scan=_scans(parallel, is_resident(train, config.data.pipeline)))
    optimizer = _optimizer(config, given, plan, model, train.image_shape)
    hyperparameters = member_hyperparameters(config, optimizer)
    if given.optimizer is not None or ":" in optim.optimizer or optim.member_optimizer_args:
        first = {name: of[0] for name, of in hyperparameters[-1].items()}
        check_update(optimizer, variable_shapes(model, train.image_shape)["params"], first)

    def init(seed: jax.Array, learning_rate: jax.Array, others: Tree, *, variables: Tree = None) -> TrainState:
        return init_state(
            model,
            optimizer,
            train.image_shape,
            seed,
            learning_rate=learning_rate,
            hyperparameters=others,
            ema=optim.ema_decay is not None,
            variables=variables,
        )

    # A model that cannot take these images, or a rule that matches no parameter, fails here.
    with plain_operations():  # the compiled ones may not be ready
        start = jax.jit(partial(stack_members, init)).trace(*hyperparameters)
        state: Any = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), start.out_info)
        _check_memory(config, parallel, train, state)
        _check_outputs(model, task, train, state, config.train.members)
    if resumed:
        origin = Origin(preprocess=resumed)
    else:
        origin = initial_variables(config, model, train.image_shape, train.class_names)
    data = {name: _pipeline(config, name, source, len(parallel.devices)) for name, source in sources.items()}
    if config.data.balance == "loss":
        task = _balanced(task, train, data["train"])
    if origin.preprocess is None:
        resident: Any = data["train"].arrays
        preprocess = Preprocess.fit(resident["image"] if resident else train, config.data.normalize)
    else:
        preprocess = replace(origin.preprocess, image_shape=train.image_shape)
    preprocess = replace(preprocess, levels=getattr(train, "levels", None))
    if origin.variables is not None:  # they would become constants of a program
        state = stack_members(partial(init, variables=origin.variables), *hyperparameters)
    elif resumed is None:
        state = call_traced(start, *hyperparameters)
    return Experiment(
        config,
        parallel,
        sources,
        data,
        preprocess,
        augment,
        task,
        model,
        optimizer,
        plan,
        state,
        parameters=count_parameters(state.params) // config.train.members,
        flops_per_image=count_flops(model, train.image_shape),
        origin=origin.told,
    )


def check_names(config: Config, given: Given = Given()) -> None:
    """Rejects unknown names before any data is read or any run folder is touched.

    Raises:
        UserError: an unknown model, schedule, optimizer, augmentation, loss or task.
    """
    if given.model is None and ":" not in config.model.model and config.model.model not in MODELS:
        raise unknown("model", config.model.model, MODELS)
    if config.optim.schedule not in SCHEDULES:
        raise unknown("schedule", config.optim.schedule, SCHEDULES)
    if given.optimizer is None:
        get_optimizer_spec(config.optim.optimizer)
    if given.task is None:
        make_task(config.optim, ())
    with naming("`augment`"):
        for spec in config.data.augment:
            parse_spec(spec)


def _check_class_names(train: Source) -> None:
    """Rejects class names that the run's files could not hold.

    Raises:
        UserError: names the class.
    """
    for name in train.class_names:
        if name != readable(name):
            raise UserError(
                f"the class name {readable(name)!r} has a line break or another control character: change it"
            )


def _check_memory(config: Config, parallel: Parallel, train: Source, state: Tree = None) -> None:
    """Rejects a batch of images that does not fit in memory; with `state`, counts weights and gradients, too.

    Raises:
        UserError: names what needs how much.
    """
    size, memory = "x".join(map(str, train.image_shape)), _device_memory(parallel)
    needed = 4 * config.data.batch_size * math.prod(train.image_shape)  # bytes of the images, as float32
    if memory is not None:
        needed //= len(parallel.devices)
    what, advice = f"a batch of {config.data.batch_size} images of {size}", "lower `image_size` or `batch_size`"
    if state is not None:
        needed += _bytes(state) + _bytes(state.params)
        what, advice = f"training {config.model.model} on {size} images", f"{advice}, or choose another `model`"
    check_memory(needed, what, advice, memory)


def _bytes(tree: Tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _device_memory(parallel: Parallel) -> int | None:
    """Bytes of memory of a device; None if it has none of its own."""
    return (parallel.devices[0].memory_stats() or {}).get("bytes_limit")


def _batch_shapes(source: Source, size: int) -> dict[str, Any]:
    """Shapes of a batch of `size` examples."""
    return {name: jax.ShapeDtypeStruct((size, *of.shape), of.dtype) for name, of in example_spec(source).items()}


def _augment(config: Config, parallel: Parallel, train: Source, task: Task) -> Augment:
    specs, batch = config.data.augment, _batch_shapes(train, config.data.batch_size)
    with naming("`augment`"):
        augment = make_augment(specs)
        # Arguments that do not suit these images fail here.
        jax.eval_shape(lambda batch: augment(jax.random.key(0), task.prepare(batch)), batch)
    mixing = [spec for spec in specs if parse_spec(spec)[0] in PER_BATCH]
    if mixing and parallel.kind == "pmap" and len(parallel.devices) > 1:
        raise UserError(
            f"{mixing[0]} mixes images across the batch, which `parallel` pmap splits over {len(parallel.devices)} "
            "devices: use jit"
        )
    return augment


def _model(config: Config, given: Given, task: Task, parallel: Parallel) -> nn.Module:
    if given.model is not None:
        return check_module(given.model)
    return make_model(
        config.model.model,
        task.outputs,
        dtype=jnp.dtype(config.model.precision),
        axis_name=parallel.axis_name,
        args=config.model.model_args,
    )


def _check_outputs(model: nn.Module, task: Task, train: Source, state: TrainState, members: int) -> None:
    """Lets the task check the shapes of the model's outputs for two examples."""
    one = (lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)) if members > 1 else lambda leaf: leaf
    variables = jax.tree.map(one, {"params": state.params, "batch_stats": state.batch_stats})
    height, width, channels = train.image_shape
    normalize = Preprocess((height, width, channels), (0.0,) * channels, (1.0,) * channels).normalize_batch
    batch = jax.eval_shape(lambda batch: normalize(task.prepare(batch)), _batch_shapes(train, 2))
    filled = {name: tree for name, tree in variables.items() if tree}
    outputs = jax.eval_shape(lambda v, b: model.apply(v, task.inputs(b), train=False), filled, batch)
    task.check(outputs, batch)


def _optimizer(
    config: Config, given: Given, plan: Plan, model: nn.Module, image_shape: tuple[int, int, int]
) -> Optimizer:
    optim, rates = config.optim, config.optim.member_learning_rates
    if not all(0 < rate < float("inf") for rate in rates):
        raise UserError(f"`member_learning_rates` are {' '.join(map(str, rates))}: they must be finite and above 0")
    compared = config.compared
    if len(set(compared)) < len(compared):
        fields, gap = "`member_learning_rates`", " "
        if optim.member_optimizer_args:
            fields, gap = f"{fields} and `member_optimizer_args`", ", "
        raise UserError(f"{fields} are {gap.join(map(str, compared))}: name each once")
    if rates and optim.head_learning_rate is not None:
        raise UserError("`member_learning_rates` and `head_learning_rate` cannot be combined: drop one")
    if given.optimizer is not None:
        frozen = frozen_rules(optim.freeze, freeze_until_steps(optim.freeze_until, plan.steps_per_epoch))
        groups = [parse_rule(text) for text in optim.rate_groups]
        optimizer = from_transformation(given.optimizer, optim.optimizer, optim, frozen, groups)
    else:
        if rates:
            optim = replace(optim, learning_rate=rates[0])
        optimizer = make_optimizer(
            optim,
            total_steps=plan.total_steps,
            steps_per_epoch=plan.steps_per_epoch,
            rate_groups=rate_groups(optim, model, image_shape),
        )
    if rates and optimizer.learning_rate is None:
        raise UserError(f"{optim.optimizer} sets its own learning rate: drop `member_learning_rates`")
    if not compared:
        return optimizer
    first, *others = compared
    first_one = ", ".join([optimizer.description, *first.args])
    return replace(optimizer, description=f"{first_one}; other networks: {', '.join(map(str, others))}")


def sources_of(
    config: Config, given: Given, levels: Levels | Literal["in use"] | None = "in use"
) -> Mapping[str, Source]:
    """Returns the run's splits: those that are given, or else opened; without the test set if it must not be read."""
    sources = given.sources or open_sources(config, levels)
    if config.data.test_split == NO_TEST:
        return {name: source for name, source in sources.items() if name != "test"}
    return sources


def open_sources(config: Config, levels: Levels | Literal["in use"] | None = "in use") -> dict[str, Source]:
    """Opens the run's splits: "train", "validation" and, if there is one, "test".

    Args:
        config: the run's config.
        levels: values of more than 8 bits that become 0 and 255, see `open_source`.

    Raises:
        UserError: an unknown data set or split, or two splits that share images.
    """
    data = config.data
    chosen = {"train": data.train_split, "validation": data.validation_split, "test": data.test_split}
    usual = Splits() if all(chosen.values()) else default_splits(data.dataset, data.data_dir, data.group_by)
    every = {name: split or getattr(usual, name) for name, split in chosen.items()}
    if data.test_split == NO_TEST:
        del every["test"]
    splits = {name: split for name, split in every.items() if split is not None}
    opened = partial(
        open_source,
        data.dataset,
        data_dir=data.data_dir,
        image_size=data.image_size,
        channels=data.channels,
        levels=levels,
        group_by=data.group_by,
    )
    sources = {name: opened(split, skip_bad_images=data.skip_bad_images) for name, split in splits.items()}
    sizes = {}  # of the splits that are used in part, bad images included
    for part in (part for split in splits.values() for part in _parts(split)):
        name = part.partition("[")[0]
        if name not in (part, *sizes):
            sizes[name] = len(opened(name))
    for one, other in itertools.combinations(splits, 2):
        if _overlap(splits[one], splits[other], sizes):
            raise UserError(
                f"`{one}_split` {splits[one]} and `{other}_split` {splits[other]} share images: change one of them"
            )
    return sources


def _overlap(one: str, other: str, sizes: Mapping[str, int]) -> bool:
    """Whether two splits, or sums of splits, share images; `all` overlaps every split."""
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
    if name != "train":  # the last batch is padded, so any multiple of the number of devices is exact
        size = -(-min(config.data.eval_batch_size, len(source)) // devices) * devices
    data = config.data
    return make_pipeline(
        source,
        batch_size=size,
        seed=config.train.seed,
        mode=data.pipeline,
        workers=data.workers,
        balanced=name == "train" and data.balance == "sampling",
    )


def _balanced(task: Task, train: Source, pipeline: Pipeline) -> Task:
    """The task with the weights of its classes.

    Raises:
        UserError: it cannot weight them, or there are no labels.
    """
    balanced = getattr(task, "balanced", None)
    if balanced is None or "label" not in example_spec(train):
        raise UserError(f"`balance` is loss, but the task {task.name} has no classes to weight: set it to none")
    labels = pipeline.arrays["label"] if pipeline.arrays else read_labels(train)
    return balanced(np.bincount(labels, minlength=len(train.class_names)))


def _scans(parallel: Parallel, resident: bool) -> bool:
    """Whether to compile several steps as one call: where loops are fast (not on CPU) and items small (indices)."""
    return parallel.devices[0].platform != "cpu" and resident
