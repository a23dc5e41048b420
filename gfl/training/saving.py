"""The checkpoints of a run: when last.pt is kept as previous.pt, and what must hold before anything is saved."""

from collections.abc import Callable, Mapping
from pathlib import Path

from gfl.checkpoint import LAST, PREVIOUS, TrainState, save_checkpoint
from gfl.common import distributed
from gfl.config import Config
from gfl.data.bad_images import gather_bad_images
from gfl.data.loader import TrainingData
from gfl.training.divergence import looks_diverged
from gfl.training.nonfinite import FiniteGuard


class CheckpointSaver:
    """Saves the state of a run under the names of its checkpoints.

    Args:
        digests: of what the run reads, by name.
        keep_lock: raises `UserError` where another run may have taken the folder.
        last_is_sound: whether the last.pt that is there may become previous.pt, which a damaged one or one from where
            the loss looks diverged must not.
    """

    def __init__(
        self,
        state: TrainState,
        config: Config,
        data: TrainingData,
        digests: Mapping[str, str],
        guard: FiniteGuard,
        keep_lock: Callable[[], None],
        *,
        last_is_sound: bool,
    ) -> None:
        self.state, self.config, self.guard, self.keep_lock = state, config, guard, keep_lock
        self.data, self.digests, self.last_is_sound = data, digests, last_is_sound

    def save(self, name: str) -> None:
        """Write the checkpoint `name`; all processes call it for last.pt, the main one for another of the same step.

        Raises `UserError` if a loss was not finite, or the file cannot be written.
        """
        if name == LAST:
            self.guard.flush()  # nothing that is not finite is ever saved
            self.state.bad_images |= gather_bad_images(self.data.train_loader.dataset.bad)
        if not distributed.is_main():
            return
        self.keep_lock()
        is_sound = not looks_diverged(self.state.running_loss)
        run_dir = Path(self.config.run_dir)
        backup_to = run_dir / PREVIOUS if name == LAST and self.last_is_sound and is_sound else None
        class_names = self.data.train.class_names
        save_checkpoint(run_dir / name, self.state, self.config, class_names, self.digests, backup_to=backup_to)
        self.last_is_sound = is_sound
