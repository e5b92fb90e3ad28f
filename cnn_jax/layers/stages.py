"""How a model exposes what happens inside: its stages, and the logits of its side heads."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def tap(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Exposes `x` as the stage `name` to `cnn_jax.models.stages`, and returns it. Costs nothing in any other call."""
    # Not `sow`: it refuses a stage that is named as a layer.
    if module.is_mutable_collection("stages") and not module.is_initializing():
        module.put_variable("stages", name, x)
    return x


def auxiliary(module: nn.Module, name: str, logits_BxK: jax.Array, weight: float) -> None:
    """Offers the logits of a side head: training adds `weight` times their loss (Szegedy et al. 2014, §5)."""
    if module.is_mutable_collection("auxiliary") and not module.is_initializing():
        module.put_variable("auxiliary", name, {"logits": logits_BxK, "weight": jnp.float32(weight)})
