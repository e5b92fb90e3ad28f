"""Training on the hardest images of each batch, chosen by a small network trained alongside (airbench96_faster).

In the original, the small network trains first and its choices are stored. Here both take each step together, which is
equivalent, because the small network does not depend on the other.
"""

import dataclasses
from collections.abc import Callable

import jax
import optax

from cnn_jax.tasks.losses import cross_entropy, smooth
from cnn_jax.training.state import TrainState
from experiments.cifar10_speedrun.network import network, normalize
from experiments.cifar10_speedrun.optimizer import Tree, make_optimizer
from experiments.cifar10_speedrun.recipe import Hardest, Plan, Recipe

Choose = Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, jax.Array]]


def make_choose(recipe: Recipe, plan: Plan, hardest: Hardest) -> Choose:
    """Returns `choose(state, images_BxHxWxC, targets_BxK) -> (state, rows_N int32)`.

    The rows are those with the small network's largest losses. In every `hardest.every`-th step it is trained on them,
    with the norms' statistics of the whole batch; in the other steps only those statistics are updated.
    """
    small = recipe.small(hardest)
    model, tx = network(small).clone(train_whitening_bias=False), make_optimizer(small, plan, stride=hardest.every)

    def look(params: Tree, state: TrainState, images_BxHxWxC: jax.Array, targets_BxK: jax.Array) -> Tree:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits_BxK, updates = model.apply(variables, normalize(images_BxHxWxC), train=True, mutable=["batch_stats"])
        losses_B = cross_entropy(logits_BxK, smooth(targets_BxK, small.label_smoothing))
        _, rows_N = jax.lax.top_k(jax.lax.stop_gradient(losses_B), hardest.count(len(losses_B)))
        return losses_B[rows_N].sum(), (updates["batch_stats"], rows_N)

    def choose(state: TrainState, images_BxHxWxC: jax.Array, targets_BxK: jax.Array) -> tuple[TrainState, jax.Array]:
        def learn() -> Tree:
            gradient, seen = jax.grad(look, has_aux=True)(state.params, state, images_BxHxWxC, targets_BxK)
            updates, opt_state = tx.update(gradient, state.opt_state, state.params)
            return optax.apply_updates(state.params, updates), opt_state, seen

        def watch() -> Tree:
            _, seen = look(state.params, state, images_BxHxWxC, targets_BxK)
            return state.params, state.opt_state, seen

        params, opt_state, (batch_stats, rows_N) = jax.lax.cond(state.step % hardest.every == 0, learn, watch)
        new = dataclasses.replace(
            state, step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
        )
        return new, rows_N

    return choose
