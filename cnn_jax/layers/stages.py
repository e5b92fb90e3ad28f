"""How a model exposes its intermediate activations and the logits of its auxiliary heads."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def tap(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Returns `x`, and exposes it as the stage `name` to `cnn_jax.models.stages`; otherwise it costs nothing."""
    # Not `sow`, which rejects a stage with the same name as a layer.
    if module.is_mutable_collection("stages") and not module.is_initializing():
        module.put_variable("stages", name, x)
    return x


def auxiliary(module: nn.Module, name: str, logits_BxK: jax.Array, weight: float) -> None:
    """Exposes the logits of an auxiliary head: training adds `weight` times their loss (Szegedy et al. 2014, §5)."""
    if module.is_mutable_collection("auxiliary") and not module.is_initializing():
        module.put_variable("auxiliary", name, {"logits": logits_BxK, "weight": jnp.float32(weight)})
