"""ResumableCheckpoint: the callback that writes checkpoints while a model trains."""

import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback

from sb3_ddpg_scratch.checkpoint.callback_states import environments_of
from sb3_ddpg_scratch.checkpoint.environments import outlive_termination
from sb3_ddpg_scratch.checkpoint.replay_segments import FOLDER, Segment, SegmentLog, why_not_saved
from sb3_ddpg_scratch.checkpoint.serialization import NotDataError
from sb3_ddpg_scratch.checkpoint.storage import checkpoints_in, newest_whole, prune, read_manifest, step_of, write_checkpoint
from sb3_ddpg_scratch.checkpoint.training import capture_training, segments_of
from sb3_ddpg_scratch.errors import ArgumentError, CheckpointError
from sb3_ddpg_scratch.folder_lock import hold_folder
from sb3_ddpg_scratch.validation import check_whole_number


class ResumableCheckpoint(BaseCallback):
    """
    Writes checkpoints from which training continues as if it had never been interrupted, bit for bit: networks, optimizers,
    replay buffer, counters, noise, all random generators, ``VecNormalize``, and the environments in the middle of their
    episodes. ``ScratchDDPG.resume(path, env)`` reads them.

    Checkpoints are written every ``every`` steps, between an update and the next step, and at the end of training. On
    SIGTERM, which schedulers send, ``learn`` also writes one and returns normally; ``terminated`` is then ``True``. (Only
    the main thread can handle signals.)

    Counts of other callbacks are saved where they are known (evaluations, calls), or where a callback provides
    ``get_training_state()`` and ``set_training_state(state)``. A callback that draws random numbers when a rollout starts
    must come after this one, or it would draw twice.

    Environments that cannot be captured (see :mod:`sb3_ddpg_scratch.checkpoint.environments`) begin a new episode when
    training is resumed, with a warning at the first checkpoint.

    :param path: folder for the checkpoints: empty, or that of this model's training or of the one being resumed
    :param every: environment steps between two checkpoints
    :param keep: how many checkpoints to keep, the newest ones
    :param verbose: 1 to print when a checkpoint is written
    :raises ArgumentError: for numbers out of range; and, when training begins, for a folder with another training's
        checkpoints, a model that is not a ``ScratchDDPG``, or one whose buffer or noise cannot be saved
    :raises FolderInUseError: when training begins, for a folder that another training is writing to
    :raises CheckpointError: when a checkpoint cannot be written; the last good one remains
    """

    # A ScratchDDPG, which this package must not import.
    model: Any

    def __init__(self, path: str | Path, every: int = 10_000, keep: int = 2, verbose: int = 0) -> None:
        super().__init__(verbose)
        check_whole_number("every", every, 1)
        check_whole_number("keep", keep, 1)
        self.path = Path(path)
        self.every = every
        self.keep = keep
        self.terminated = False
        self.last: Path | None = None
        self._kept: dict[Path, set[str]] = {}
        self._log, self._demonstration_log = (SegmentLog(self.path / FOLDER) for _ in range(2))
        self._demonstrations: ReplayBuffer | None = None
        self._saved_at = 0
        self._stop = False
        self._at_rest = False

    def _init_callback(self) -> None:
        if not hasattr(type(self.model), "resume"):
            raise ArgumentError("model", type(self.model).__name__, "a ScratchDDPG, to be checkpointed")
        assert self.model.replay_buffer is not None
        reason = why_not_saved(self.model.replay_buffer)
        if reason is not None:
            raise ArgumentError("replay_buffer_class", type(self.model.replay_buffer), "one that can be checkpointed", reason)

    def _on_training_start(self) -> None:
        model = self.model
        model._after_learn.enter_context(hold_folder(self.path, "path"))
        self._root: BaseCallback = self.locals.get("callback", self)
        self._stop = self.terminated = False
        source = model._resumed_from
        here = source is not None and source.parent.resolve() == self.path.resolve()
        if source is not None and here and self.last is None and model.num_timesteps == step_of(source):
            self._continue_from(source)
        else:
            self._start_fresh()
        self._handle_termination()

    def _start_fresh(self) -> None:
        """Start a log in which the first checkpoint writes all rows already in the buffer."""
        there = checkpoints_in(self.path)
        if self.last is None and there:
            # A new callback of the same model, as when a notebook's cell is run again.
            written = {Path(path).resolve() for path in (self.model.last_checkpoint, self.model._resumed_from) if path}
            if written.isdisjoint(folder.resolve() for folder in there):
                advice = f"To continue that training: ScratchDDPG.resume({str(self.path)!r}, env)."
                raise ArgumentError("path", str(self.path), "a folder without another training's checkpoints", advice)
            self._keep_until(self.num_timesteps)
        self._log = SegmentLog(self.path / FOLDER)
        if self.num_timesteps < self._saved_at:
            # Steps restart at 0: the old checkpoints are removed, since they would look newest.
            self._kept = {}
        self._saved_at = self.num_timesteps
        self.last = None

    def _continue_from(self, source: Path) -> None:
        """Continue with the segments of the checkpoint that the training was resumed from."""
        checkpoint, _ = newest_whole(source)
        of_replay, demonstrated = segments_of(checkpoint)
        self._log = SegmentLog(self.path / FOLDER, of_replay, checkpoint.state["buffer"]["written"])
        held = self.model.demonstrations
        if held is not None and held.size() == sum(segment.stop - segment.start for segment in demonstrated):
            self._demonstrations, self._demonstration_log = held, SegmentLog(self.path / FOLDER, demonstrated)
        self._saved_at = checkpoint.step
        self.last = source
        self.model.last_checkpoint = str(source)
        self._keep_until(checkpoint.step)

    def _keep_until(self, step: int) -> None:
        """Keep checkpoints up to this step: later ones are damaged or of another continuation, and go with the next write."""
        for folder in reversed(checkpoints_in(self.path)):
            if step_of(folder) <= step:
                with suppress(CheckpointError):
                    self._kept[folder] = {segment.name for segment in read_manifest(folder).segments}

    def _on_rollout_end(self) -> None:
        # If training ends next, this rollout's updates have been made.
        self._at_rest = True

    def _on_rollout_start(self) -> None:
        self._at_rest = False
        # The previous step's updates are done: everything is at rest.
        if self.terminated and not self._stop:
            self._stop = True
            self._save()
            print(f"SIGTERM: training ends at step {self.num_timesteps}; {self.last} has its state.", file=sys.stderr)
        elif self.model.num_timesteps // self.every > self._saved_at // self.every:
            self._save()

    def _on_step(self) -> bool:
        return not self._stop

    def _on_training_end(self) -> None:
        # Training that a callback stopped within a step cannot continue from there.
        if self._at_rest:
            self._save()

    def _save(self) -> None:
        model = self.model
        step = model.num_timesteps
        if self.last is not None and step == self._saved_at:
            return
        assert model.replay_buffer is not None
        try:
            with self._reporting_disk_errors():
                added = 0 if model.learns_offline else (step - self._saved_at) // model.n_envs
                self._log.save(model.replay_buffer, added)
                demonstrated = self._demonstration_segments()
            state = capture_training(model, self._root, self._log.written, len(demonstrated))
            segments = [*self._log.segments, *demonstrated]
            with self._reporting_disk_errors():
                folder = write_checkpoint(self.path, step, state, segments)
        except NotDataError as error:
            advice = "Give it the methods get_training_state() and set_training_state(state)."
            raise CheckpointError(self.path, f"cannot hold this training: {error}", advice) from error
        obstacle = state["env"]["obstacle"]
        if obstacle is not None and not self._kept:
            warnings.warn(f"{obstacle}: resumed trainings will begin a new episode there.", stacklevel=2)
        self._kept.pop(folder, None)
        self._kept[folder] = {segment.name for segment in segments}
        while len(self._kept) > self.keep:
            del self._kept[next(iter(self._kept))]
        prune(self.path, self._kept)
        self.last, self._saved_at = folder, step
        model.last_checkpoint = str(folder)
        if self.verbose:
            print(f"Checkpoint: {folder}")

    def _demonstration_segments(self) -> list[Segment]:
        """Of the model's demonstrations, which are written when they are new."""
        held = self.model.demonstrations
        if held is not self._demonstrations:
            self._demonstrations, self._demonstration_log = held, SegmentLog(self.path / FOLDER)
            if held is not None:
                self._demonstration_log.save(held, held.size())
        return self._demonstration_log.segments

    @contextmanager
    def _reporting_disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            good = f"The last good checkpoint is {self.last}." if self.last else "There is no earlier checkpoint."
            raise CheckpointError(self.path, f"could not be written to ({error.strerror})", good) from error

    def _handle_termination(self) -> None:
        if threading.current_thread() is threading.main_thread():
            before: Any = signal.signal(signal.SIGTERM, self._terminate)
            restored = signal.SIG_DFL if before is None else before
            self.model._after_learn.callback(signal.signal, signal.SIGTERM, restored)
            for env in (self.training_env, *environments_of(self._root)):
                outlive_termination(env, outlive=True)
                self.model._after_learn.callback(outlive_termination, env, outlive=False)
        # After an error, nothing is at rest.
        self.model._after_learn.callback(setattr, self, "_at_rest", False)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        # This can interrupt anything: only set a flag.
        self.terminated = True
