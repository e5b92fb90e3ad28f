"""Orbax's checkpoint manager, set up for our checkpoints; the only module that imports Orbax, which takes a while."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from cnn_jax.storage import durable
from cnn_jax.storage.run_folder import METRICS

# What Orbax still writes when it renames a checkpoint: times. Nothing in them is used.
_CHANGED_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")


class _DurableFolder(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The folder in which Orbax writes a checkpoint, and whose `finalize` gives it its final name."""

    async def finalize(self) -> None:
        """Seals the checkpoint, renames it, and syncs the new name."""
        final = Path(self.get_final())
        if final.name.isdigit():  # not a folder inside the checkpoint
            durable.sync([final.parent.parent / METRICS])  # the rows up to this step
            durable.seal(Path(self.get()), but=_CHANGED_LATER)
        await super().finalize()
        if final.name.isdigit():
            durable.sync(final / name for name in _CHANGED_LATER)
            durable.sync_folder(final)
            durable.sync_folder(final.parent)


class Manager(ocp.CheckpointManager):
    """Saves and restores the state of a run; see `make_manager`."""

    def save_state(self, step: int, state: Any, metrics: Mapping[str, float] | None) -> None:
        """Writes a state of NumPy arrays in the background."""
        self.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics=metrics)

    def restore_state(self, step: int, like: Any) -> Any:
        """Reads a state; `like` has the shape, dtype and sharding of every array."""
        return self.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))["state"]


def make_manager(folder: Path, score: Callable[[Any], Any], latest: int) -> Manager:
    """Opens the checkpoints in a folder, which is created if absent.

    Args:
        folder: the checkpoint of step s is `folder/s`.
        score: maps metrics to what the best checkpoint has most of.
        latest: how many of the latest checkpoints are kept, besides the best.
    """
    best = policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        best_fn=score,
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(latest), best]),
        cleanup_tmp_directories=True,
        temporary_path_class=_DurableFolder,
        # In the background, Orbax would wait 20 minutes for a folder that cannot be created.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    return Manager(folder, options=options, item_names=("state",))
