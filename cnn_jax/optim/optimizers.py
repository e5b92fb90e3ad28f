"""Optimizers by name: nine classics with the hyperparameters of their papers, and any other Optax factory.

A gradient passes through, in order: clipping by global norm, L2 weight decay, the optimizer with its schedule, and
per-group learning-rate multipliers. Frozen parameters are excluded from all four.
"""

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from cnn_jax.arguments import load_attribute, naming, parse_arguments
from cnn_jax.config import OptimConfig
from cnn_jax.errors import UserError, counted, unknown
from cnn_jax.optim.parameter_groups import Rule, freeze_until_steps, frozen_rules, multiply, parse_rule
from cnn_jax.optim.schedules import Schedule, make_schedule

Tree = Any


@dataclass(frozen=True)
class Optimizer:
    """An optimizer, as returned by `make_optimizer`.

    Attributes:
        tx: the complete transformation; its state holds only arrays, none shared with the parameters.
        schedule: step → learning rate, for logging; None for a ready-made transformation, which sets its own.
        learning_rate: the peak rate; None for a ready-made transformation.
        at: maps a peak rate, which may be traced, to the same transformation with that rate. A second argument sets
            other hyperparameters by name, arguments of the factory or "weight_decay", which may be traced, too; they
            are kept in the state, see `Compared`.
        frozen: rules that select frozen parameters; BatchNorm layers among them keep their running statistics.
        description: a one-line summary.
    """

    tx: optax.GradientTransformation
    schedule: Schedule | None
    learning_rate: float | None
    at: Callable[..., optax.GradientTransformation]
    frozen: tuple[Rule, ...]
    description: str


class Compared(NamedTuple):
    """State of an optimizer with hyperparameters of its own, so that one program serves networks with any values.

    Computed with in float32, 1 minus a value close to 1, such as b2, is rounded: of 1 − 0.9999, by 0.02 %.

    Attributes:
        hyperparameters: by name, float32 scalars.
        state: that of the optimizer.
    """

    hyperparameters: dict[str, Any]
    state: Tree


@dataclass(frozen=True)
class Method:
    """An Optax factory with the hyperparameters and learning rate of its paper.

    Attributes:
        factory: called with learning_rate and keyword arguments.
        reference: the paper.
        learning_rate: default peak rate; None if there is no usual one.
        values: keyword arguments that differ from the factory's defaults.
        ready_made: whether the factory returns a finished transformation, which sets its own rate.
    """

    factory: Callable[..., optax.GradientTransformation]
    reference: str
    learning_rate: float | None = None
    values: dict[str, Any] = field(default_factory=dict)
    ready_made: bool = False


def weights_only(params: Tree) -> Tree:
    """Selects parameters of at least two dimensions: LARS and LAMB scale no biases and norms layer by layer."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def lamb(
    learning_rate: float | Callable[[Any], Any],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    mask: Any = None,
) -> optax.GradientTransformation:
    """Returns `optax.lamb`, but with the trust ratio of `weights_only`."""
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps, eps_root=eps_root),
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(optax.scale_by_trust_ratio(), weights_only),
        optax.scale_by_learning_rate(learning_rate),
    )


# The sources of SGD, momentum and Nesterov give no rate: 0.01 is Keras's default. RMSProp was never published; its rate
# is from Hinton's lecture. AdaGrad's δ and RMSProp's ε are added outside the square root there, but Optax adds
# AdaGrad's inside it, hence the square. Nadam omits Dozat's momentum schedule. Muon's rate is the default of its
# authors' code, github.com/KellerJordan/Muon, which scales updates as Optax does.
_DESCENT = Method(optax.sgd, "Robbins & Monro 1951", 0.01)
METHODS: dict[str, Method] = {
    "gradient_descent": _DESCENT,
    "sgd": _DESCENT,
    "momentum": Method(optax.sgd, "Polyak 1964", 0.01, {"momentum": 0.9}),
    "nesterov": Method(optax.sgd, "Nesterov 1983; Sutskever et al. 2013", 0.01, {"momentum": 0.9, "nesterov": True}),
    "adagrad": Method(optax.adagrad, "Duchi et al. 2011", 0.01, {"initial_accumulator_value": 0.0, "eps": 1e-16}),
    "adadelta": Method(optax.adadelta, "Zeiler 2012", 1.0, {"rho": 0.95, "eps": 1e-6}),
    "rmsprop": Method(optax.rmsprop, "Tieleman & Hinton 2012", 0.001, {"decay": 0.9, "eps_in_sqrt": False}),
    "adam": Method(optax.adam, "Kingma & Ba 2015, alg. 1", 0.001),
    "adamax": Method(optax.adamax, "Kingma & Ba 2015, alg. 2", 0.002),
    "nadam": Method(optax.nadam, "Dozat 2016", 0.002),
    "adamw": Method(optax.adamw, "Loshchilov & Hutter 2019", 0.001),
    "adabelief": Method(optax.adabelief, "Zhuang et al. 2020", 0.001),
    "lion": Method(optax.lion, "Chen et al. 2023", 0.0001),
    "lamb": Method(lamb, "You et al. 2020"),
    "lars": Method(optax.lars, "You et al. 2017", values={"trust_ratio_mask": weights_only}),
    "yogi": Method(optax.yogi, "Zaheer et al. 2018", 0.01),
    "muon": Method(optax.contrib.muon, "Jordan et al. 2024", 0.02),
}

_ANOTHER = "use another, such as adam"
_NEEDS_LOSS = f"it needs the loss value, not only gradients; {_ANOTHER}"
_SCHEDULE_FREE = "its weights must be averaged before every evaluation; use another optimizer with `ema_decay`"
REFUSED: dict[str, str] = {
    "lbfgs": _NEEDS_LOSS,
    "polyak_sgd": _NEEDS_LOSS,
    "momo": _NEEDS_LOSS,
    "momo_adam": _NEEDS_LOSS,
    "sophia": _NEEDS_LOSS,
    "dpsgd": f"it needs the gradient of every example, not their mean; {_ANOTHER}",
    "noisy_sgd": f"it keeps its own random state, while every draw here derives from the run's seed; {_ANOTHER}",
    "optimistic_adam": "Optax has replaced it; use optimistic_adam_v2",
    "schedule_free": _SCHEDULE_FREE,
    "schedule_free_adamw": _SCHEDULE_FREE,
    "schedule_free_sgd": _SCHEDULE_FREE,
}

DECAY = "weight_decay"  # the config field, as a hyperparameter
_OWN_DECAY = (DECAY, "weight_decay_rate")
_OWN_MASK = ("mask", "weight_decay_mask")
# Set by `make_optimizer`, or impossible to write as text.
HIDDEN = ("learning_rate", *_OWN_DECAY, *_OWN_MASK, "adam_weight_decay", "trust_ratio_mask", "base_optimizer")

# Ranges of arguments by their usual names; others are not checked.
_SHARES = ("b1", "b2", "b3", "beta", "decay", "momentum", "rho")  # in [0, 1): the decay rates of moving averages
_POSITIVE = ("eps",)
_NOT_NEGATIVE = ("eps_root", "initial_accumulator_value", "initial_scale", DECAY)


@functools.cache
def optax_factories() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """Factories of `optax` and `optax.contrib` that take a learning rate, by name, except those in `REFUSED`."""
    found = {}
    for module in (optax.contrib, optax):
        for name, member in vars(module).items():
            if name.startswith(("_", "scale_by_")) or name in REFUSED:
                continue
            if isinstance(member, types.FunctionType | functools.partial):
                if "learning_rate" in inspect.signature(member).parameters:
                    found[name] = member
    return found


def get_optimizer_spec(name: str) -> Method:
    """Returns the entry of `METHODS`, the user's own factory, or the Optax factory of that name.

    Raises:
        UserError: there is none, or it cannot be used here.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" in name:
        return _own_factory(name)
    if name in REFUSED:
        raise UserError(f"optimizer {name} cannot be used here: {REFUSED[name]}")
    factories = optax_factories()
    if name not in factories:
        raise unknown("optimizer", name, {*METHODS, *factories})
    default = inspect.signature(factories[name]).parameters["learning_rate"].default
    return Method(factories[name], "optax", default if isinstance(default, float) else None)


def _own_factory(name: str) -> Method:
    """The user's own factory, named `package.module:attribute`."""
    factory: Any = load_attribute(name)
    if isinstance(factory, optax.GradientTransformation):
        return Method(lambda: factory, "a ready-made transformation", ready_made=True)
    if not callable(factory) or "learning_rate" not in inspect.signature(factory).parameters:
        raise UserError(
            f"{name} is not an optimizer: name an Optax transformation, or a factory that takes learning_rate"
        )
    default = inspect.signature(factory).parameters["learning_rate"].default
    made: Callable[..., optax.GradientTransformation] = cast(Any, factory)
    return Method(made, "own", default if isinstance(default, float) else None)


def make_optimizer(
    config: OptimConfig,
    *,
    total_steps: int,
    steps_per_epoch: float = 1.0,
    rate_groups: Sequence[str] | None = None,
) -> Optimizer:
    """Builds an optimizer.

    Factories with built-in weight decay and a mask (adamw, lion, lamb, lars, …) receive the coefficient; for others,
    λ·w is added to the gradient before the optimizer (L2, as in the SGD papers). Parameters with fewer than two
    dimensions (biases, norms) are not decayed unless `decay_all` is set.

    Args:
        config: `optimizer` is a key of `METHODS`, a factory of `optax` or `optax.contrib` that takes a learning rate,
            or `package.module:attribute`: such a factory, or a ready-made transformation.
        total_steps: number of steps in the run.
        steps_per_epoch: converts `warmup_epochs` and `freeze_until` to steps.
        rate_groups: each regex=multiplier; the first match of a path multiplies that parameter's update; default:
            those of the config.

    Raises:
        UserError: an unknown name or argument, or a value of the wrong type or out of range. `tx.init` raises it if
            `freeze` or a group matches no parameter.

    >>> adam = OptimConfig(optimizer="adam", optimizer_args=("b1=0.95",), schedule="cosine")
    >>> make_optimizer(adam, total_steps=100).description
    'adam (Kingma & Ba 2015, alg. 1), b1=0.95, learning rate 0.001, schedule cosine'
    """
    name, args = config.optimizer, config.optimizer_args
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    until = freeze_until_steps(config.freeze_until, steps_per_epoch)
    frozen = frozen_rules(config.freeze, until)
    groups = [parse_rule(text) for text in (config.rate_groups if rate_groups is None else rate_groups)]
    if isinstance(made := _named_attribute(name), optax.GradientTransformation):
        return from_transformation(made, name, config, frozen, groups)
    method = get_optimizer_spec(name)
    peak = method.learning_rate if config.learning_rate is None else config.learning_rate
    if peak is None:
        raise UserError(f"{name} has no usual learning rate: set `learning_rate`")

    def scheduled(peak: Any) -> Schedule:
        with naming("`schedule_args`"):
            return make_schedule(
                config.schedule, config.schedule_args, peak=peak, warmup_steps=warmup_steps, total_steps=total_steps
            )

    rate = scheduled(peak)
    fixed = config.schedule == "constant" and not warmup_steps
    kind = "built in, not L2" if _own_decay(name, method, config.weight_decay, config.decay_all) else "L2"
    told = [
        f"{name} ({method.reference})",
        *args,
        f"learning rate {peak:g}",
        " ".join(["schedule", config.schedule, *config.schedule_args]),
        counted(warmup_steps, "warm-up step") if warmup_steps else "",
        f"weight decay {config.weight_decay:g} ({kind})" if config.weight_decay else "",
        *_restrictions(config, until, groups),
    ]

    def at(peak: Any, hyperparameters: Mapping[str, Any] = {}) -> optax.GradientTransformation:
        def build(hyperparameters: Mapping[str, Any]) -> optax.GradientTransformation:
            values = dict(hyperparameters)
            decay = values.pop(DECAY, config.weight_decay or None)
            own = _own_decay(name, method, 0.0 if decay is None else decay, config.decay_all)
            optimizer = _build(name, method, args, {**values, **own}, peak if fixed else scheduled(peak))
            mask = functools.partial(decay_mask, decay_all=config.decay_all)
            return _contain(_chain(optimizer, frozen, groups, config.clip_norm, None if own else decay, mask))

        return _keeping(build, hyperparameters)

    return Optimizer(at(peak), rate, peak, at, frozen, ", ".join(filter(None, told)))


def from_transformation(
    tx: optax.GradientTransformation,
    name: str = "an Optax transformation",
    config: OptimConfig = OptimConfig(),
    frozen: Sequence[Rule] = (),
    groups: Sequence[Rule] = (),
) -> Optimizer:
    """Wraps a finished Optax transformation, which sets its own learning rate and weight decay.

    Raises:
        UserError: the config also sets a rate, schedule or decay, which would be ignored.
    """
    usual, ignored = OptimConfig(), ("learning_rate", "optimizer_args", "schedule", "weight_decay", "warmup_epochs")
    if given := [field for field in ignored if getattr(config, field) != getattr(usual, field)]:
        names = ", ".join(f"`{field}`" for field in given)
        raise UserError(f"optimizer {name} is already built and ignores {names}: set them where you build it")
    whole = _contain(_chain(tx, frozen, groups, config.clip_norm, None, decay_mask))
    told = [name, *_restrictions(config, (), groups)]
    return Optimizer(whole, None, None, lambda *_: whole, tuple(frozen), ", ".join(told))


def is_gradient_descent(config: OptimConfig) -> bool:
    """Whether every parameter that is not frozen moves by the learning rate times its gradient, weight decay aside."""
    usual, scaled = OptimConfig(), ("clip_norm", "rate_groups", "layer_decay", "head_learning_rate")
    scaled += ("optimizer_args", "member_optimizer_args")
    return METHODS.get(config.optimizer) is _DESCENT and all(
        getattr(config, field) == getattr(usual, field) for field in scaled
    )


def check_update(optimizer: Optimizer, params: Tree, hyperparameters: Mapping[str, Any] = {}) -> None:
    """Traces one update without computing it.

    Args:
        optimizer: from `make_optimizer` or `from_transformation`.
        params: the parameters, or their shapes.
        hyperparameters: those in which networks differ, float32 scalars; see `Optimizer.at`.

    Raises:
        UserError: the transformation needs more than gradients and parameters, does not fit these parameters, or
            decides by the value of a hyperparameter.
    """

    def once(params: Tree, hyperparameters: Mapping[str, Any]) -> Tree:
        tx = optimizer.at(optimizer.learning_rate, hyperparameters)
        return tx.update(params, tx.init(params), params)

    try:
        jax.eval_shape(once, params, dict(hyperparameters))
    except (TypeError, ValueError) as error:
        if hyperparameters and _comes_from(error, jax.errors.ConcretizationTypeError):
            raise UserError(
                f"{optimizer.description.partition(',')[0]} decides by the value of {' or '.join(hyperparameters)} "
                "what to compute, so networks trained at once cannot differ in it: start a run for each value"
            ) from error
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:200]
        needs = "it needs the loss value, not only gradients" if "argument" in reason else "it does not fit the model"
        raise UserError(
            f"{optimizer.description.partition(',')[0]} cannot be used here, as {needs} ({reason}): use another "
            "optimizer, such as adam"
        ) from error


def _comes_from(error: BaseException | None, kind: type[Exception]) -> bool:
    """Whether an exception, or one that it was raised from, is of a kind."""
    return error is not None and (isinstance(error, kind) or _comes_from(error.__cause__, kind))


def _restrictions(config: OptimConfig, until: Sequence[tuple[str, int]], groups: Sequence[Rule]) -> list[str]:
    """Describes clipping, freezing and group multipliers."""
    rates = " ".join(f"{rule.pattern.pattern}={rule.multiplier:g}" for rule in groups)
    parts = [
        f"clipped to {config.clip_norm:g}" if config.clip_norm is not None else "",
        f"frozen {config.freeze}" if config.freeze is not None else "",
        *(f"frozen before step {step}: {regex}" for regex, step in until),
        f"rates {rates}" if groups else "",
    ]
    return [part for part in parts if part]


def _named_attribute(name: str) -> Any:
    return load_attribute(name) if ":" in name else None


def _chain(
    optimizer: optax.GradientTransformation,
    frozen: Sequence[Rule],
    groups: Sequence[Rule],
    clip_norm: float | None,
    l2: float | None,
    mask: Callable[[Tree], Tree],
) -> optax.GradientTransformation:
    """Chains the transformations of a gradient, in order."""
    return optax.chain(
        multiply(frozen),
        optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity(),
        optax.add_decayed_weights(l2, mask=mask) if l2 is not None else optax.identity(),
        multiply(frozen),  # weight decay of frozen parameters must not enter the optimizer's moments either
        optimizer,
        multiply(frozen),
        multiply(groups),
    )


def _build(
    name: str, method: Method, args: Sequence[str], own: dict[str, Any], rate: float | Schedule
) -> optax.GradientTransformation:
    """Calls the factory with the spec's values, overridden by the user's, then by ours."""
    takes_schedule = "Callable" in str(inspect.signature(method.factory).parameters["learning_rate"].annotation)
    if callable(rate) and not takes_schedule:
        raise UserError(f"{name} takes a constant rate: leave out the schedule and the warm-up")
    with naming("`optimizer_args`"):
        given = parse_arguments(f"optimizer {name}", method.factory, args, hidden=HIDDEN)
        check_ranges(name, given)
        try:
            made = method.factory(learning_rate=rate, **{**method.values, **given, **own})
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            told = " ".join(args)
            raise UserError(f"Optax refuses {told} for optimizer {name} ({reason}): correct it") from error
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise UserError(f"optimizer {name} makes {type(made).__name__}: return an optax.GradientTransformation")
    return made


def check_ranges(name: str, given: Mapping[str, Any]) -> None:
    """Rejects values of common arguments that no optimizer accepts, such as a decay rate of 2 or an epsilon of -1.

    Raises:
        UserError: names the argument and the allowed range.
    """
    for key, value in given.items():
        if value is None:
            continue
        if key in _SHARES and not 0 <= value < 1:
            allowed = "in [0, 1)"
        elif key in _POSITIVE and value <= 0:
            allowed = "more than 0"
        elif key in _NOT_NEGATIVE and value < 0:
            allowed = "0 or more"
        else:
            continue
        raise UserError(f"{key}={value} for optimizer {name} is not {allowed}: change it")


def _own_decay(name: str, method: Method, weight_decay: float, decay_all: bool) -> dict[str, Any]:
    """Weight-decay arguments for a factory with built-in, maskable decay; otherwise {}."""
    names = inspect.signature(method.factory).parameters
    decay = next((n for n in _OWN_DECAY if n in names), None)
    mask = next((n for n in _OWN_MASK if n in names), None)
    if decay is None or mask is None:
        return {}
    values: dict[str, Any] = {decay: weight_decay, mask: functools.partial(decay_mask, decay_all=decay_all)}
    if name == "muon":
        values["adam_weight_decay"] = weight_decay if decay_all else 0.0  # Adam has the biases
        values["muon_weight_dimension_numbers"] = _muon_dimensions
    return values


def _muon_dimensions(params: Tree) -> Tree:
    """Makes Muon treat each kernel as a matrix (other axes × last axis); Optax would use Adam for convolutions."""
    numbers = optax.contrib.MuonDimensionNumbers
    return jax.tree.map(lambda p: numbers(tuple(range(p.ndim - 1)), p.ndim - 1) if p.ndim > 1 else None, params)


def decay_mask(params: Tree, decay_all: bool = False) -> Tree:
    """Selects the parameters to decay: kernels, but not one-dimensional biases and norm scales.

    Args:
        params: arrays or their shapes.
        decay_all: select every parameter.

    Returns:
        A tree of booleans with the same structure.

    >>> decay_mask({"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)})
    {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda p: decay_all or p.ndim > 1, params)


def _keeping(
    build: Callable[[Mapping[str, Any]], optax.GradientTransformation], hyperparameters: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Builds a transformation that keeps its hyperparameters, if there are any, in its state, and reads them there."""
    first = build(hyperparameters)

    def init(params: Tree) -> Tree:
        state = first.init(params)
        return Compared(dict(hyperparameters), state) if hyperparameters else state

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        if not isinstance(state, Compared):
            return first.update(updates, state, params)
        updates, inner = build(state.hyperparameters).update(updates, state.state, params)
        return updates, state._replace(state=inner)

    return optax.GradientTransformation(init, update)


def _contain(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Allows Optax's implicit type promotion, and copies its state into arrays shared with nothing else.

    Optax mixes integers and floats, which fails under strict promotion. Some optimizers keep the initial parameters in
    their state, but a buffer may be donated only once.
    """

    def init(params: Tree) -> Tree:
        with jax.numpy_dtype_promotion("standard"):
            return jax.tree.map(jnp.array, tx.init(params))

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(updates, state, params)

    return optax.GradientTransformation(init, update)
