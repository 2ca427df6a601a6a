"""Checkpoints by Orbax: the state and the data's position, atomic, in one."""

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy

from jaxgen import storage
from jaxgen.errors import UserError, fails_the_machine, os_fault, remedy, trouble, unusable
from jaxgen.runtime import hosts
from jaxgen.state import State


class Checkpoints:
    """The checkpoints of one run folder: the last two and the one of lowest loss are kept.

    Orbax writes them to a bucket directly, every host its own part. What makes one valid there is
    the object that it writes last, as the new name of the folder does on a disk.
    """

    def __init__(self, folder: Path, every: int, read_only: bool = False):
        for name in ("absl", "asyncio"):  # what fails is raised and said once
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.folder, self._closed = folder, False
        # The manager reads every checkpoint's loss when it opens, and fails on the first bad one.
        there = saved(folder)
        self._damaged = [step for step in there if not _has_loss(folder, step)]
        newest = max(set(there) - set(self._damaged), default=-1)
        for step in list(self._damaged):
            # Older than a good one and without the file of its loss, it was being deleted when the
            # run was killed. With a file that cannot be read it is damaged: set aside, and said.
            if step < newest and not read_only and not _loss_file(folder, step).exists():
                self._damaged.remove(step)
                if hosts.is_first():
                    storage.remove(folder / str(step))
        if read_only and self._damaged:
            raise UserError(
                f"checkpoints {self._damaged} in {folder} are damaged: their losses, in "
                "metrics/metrics, cannot be read; train on, which sets them aside, or remove them"
            )
        self._damaged = sorted(set().union(*hosts.gathered(self._damaged)))
        for step in self._damaged:
            self._set_aside(step)
        policies = preservation_policy
        self._manager = _Manager(
            folder if storage.is_remote(folder) else folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=save_decision_policy.FixedIntervalPolicy(every),
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(2),
                        policies.BestN(get_metric_fn=_goodness, n=1),
                    ]
                ),
                best_fn=_goodness,  # without it metrics are not written, and forgotten on resume
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=not read_only,
            ),
            item_names=("state", "data"),
            writing=self._writing,
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, oldest first."""
        return sorted(self._manager.all_steps())

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after `step` steps."""
        return self._manager.should_save(step)

    def save(self, step: int, state: State, data: dict[str, Any], loss: float, force: bool = False):
        """Saves in the background what stands after `step` steps; `data` is the iterator's state.

        Raises UserError when this or the previous save cannot be written, Outage where a bucket may
        take it later; older ones stay good.
        """
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data)
                ),
                metrics={"loss": loss},
                force=force,
            )

    def restore(
        self, target: State, say: Callable[[str], None], mend: bool
    ) -> tuple[State, dict[str, Any]] | None:
        """The newest checkpoint that every process can read, or None where there is none at all.

        `target` gives shapes and shardings. What of a checkpoint is damaged is told through `say`,
        and the one before it is tried; with `mend` it is set aside, to make room for a good one. If
        all are unreadable this raises UserError: never a silent restart. What is no damage is
        raised as it is: another process lost, a machine that fails, a bucket's trouble.
        """
        with self._writing():
            self._manager.wait_until_finished()  # the reader below would not wait for a save
        steps = hosts.gathered(self.steps())[0]
        unreadable = []
        for step in reversed(self._damaged):
            say(
                f"checkpoint {step} is damaged: its loss, in metrics/metrics, cannot be read; it "
                f"is set aside as {_aside(self.folder, step)}"
            )
        for step in reversed(steps):
            found, damage = self._read(step, target)
            told = [each for each in hosts.gathered(damage) if each]
            if found and not told:
                for bad in unreadable if mend else ():
                    self._set_aside(bad)
                    self._manager.reload()
                    say(f"checkpoint {bad} is set aside as {_aside(self.folder, bad)}")
                return found
            del found  # or the devices would hold two while the next one is read
            say(f"checkpoint {step} is damaged: {told[0]}; an older one is tried")
            unreadable.append(step)
        if everything := sorted([*steps, *self._damaged]):
            raise UserError(
                f"none of the checkpoints {everything} in {self.folder} can be read; "
                "mend or move that folder, or start another run with --name"
            )
        return None

    def close(self) -> None:
        """Waits for the save under way, then lets go; a second call does nothing."""
        if not self._closed:
            self._closed = True
            with self._writing():
                self._manager.wait_until_finished()
            self._manager.close()

    def _read(self, step: int, target: State) -> tuple[tuple[State, dict[str, Any]] | None, str]:
        """(State and position, or None where this process cannot read them; the damage, or "").

        Waits for no other process, as Orbax's manager would, also for one that has failed.
        """
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process {me}"
        )
        folder = self.folder / str(step)
        try:
            with ocp.Checkpointer(
                ocp.CompositeCheckpointHandler(), multiprocessing_options=alone
            ) as reader:
                found = reader.restore(
                    folder if storage.is_remote(folder) else folder.absolute(),
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
                    ),
                )
            return (found["state"], found["data"]), ""
        except Exception as error:  # whatever a damaged file makes the reader raise
            if trouble(error) or hosts.loss(error) or fails_the_machine(error):
                raise
            return None, _damage(folder, error)

    def _set_aside(self, step: int) -> None:
        path = self.folder / str(step)
        if hosts.is_first() and path.is_dir():
            aside = _aside(self.folder, step)
            storage.remove(aside)
            path.rename(aside)
        hosts.barrier(f"checkpoint {step} set aside")

    @contextlib.contextmanager
    def _writing(self, under_way: bool = False) -> Iterator[None]:
        """`under_way`: the newest step that the manager knows of is not written yet."""
        try:
            yield
        except Exception as error:
            fault = os_fault(error)
            if not (fault or isinstance(error, OSError) or trouble(error)):
                raise
            reason = os.strerror(fault) if fault else str(error).splitlines()[0][:160]
            kept = self.steps()[: -1 if under_way else None]
            line = (
                f"cannot write a checkpoint in {self.folder} ({reason}); good ones are kept: "
                f"{kept or 'none'}"
            )
            if trouble(error):
                raise unusable(error, line) from error
            raise UserError(f"{line}; {remedy(error)} and run again") from error


def saved(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first; none where it is missing."""
    if not folder.is_dir():
        return []
    there = [path for path in folder.iterdir() if path.name.isdigit()]
    if storage.is_remote(folder):  # others were not finished when the run was killed
        there = [path for path in there if (path / "commit_success.txt").exists()]
    return sorted(int(path.name) for path in there)


class _Manager(ocp.CheckpointManager):
    """Orbax's, but for two things."""

    def __init__(self, *args: Any, writing: Callable[..., Any], **options: Any):
        self._writing = writing
        super().__init__(*args, **options)

    def reached_preemption(self, step: int) -> bool:
        """Leaves it to `hosts.preempted` to ask JAX, whose count would be set to the step's number.

        Orbax would do so at every save, and from the thread that ends one.
        """
        del step
        return False

    def _wait_for_checkpointers(self) -> None:
        """Has one of several processes that could not write end with a line, as soon as it knows.

        Orbax would have it wait for the others, which wait for it elsewhere, for 20 minutes.
        """
        if jax.process_count() == 1:
            return super()._wait_for_checkpointers()
        with hosts.together(), self._writing(under_way=True):
            return super()._wait_for_checkpointers()


def _goodness(metrics: Any) -> float:
    return -metrics["loss"]


def _aside(folder: Path, step: int) -> Path:
    return folder / f"unreadable-{step}"


def _damage(checkpoint: Path, error: Exception) -> str:
    """What of a checkpoint cannot be read: a file that is missing or cut short, or the arrays."""
    state = checkpoint / "state"
    described = (
        checkpoint / "data" / "metadata",
        state / "_METADATA",
        *sorted(state.glob("array_metadatas/*")),
    )
    for file in (*described, state / "manifest.ocdbt"):
        if not file.is_file():
            return f"{file} is missing"
    for file in described:
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            return f"{file} is cut short or changed"
    return f"its arrays, in {state}, cannot be read ({_reason(error)})"


def _reason(error: Exception) -> str:
    """In a line: of what TensorStore says its status, the array, and what comes last."""
    inner = error.__cause__ if isinstance(error.__cause__, ValueError) else error
    told = (str(inner).strip().splitlines() or [type(error).__name__])[0]
    told = told.partition(" [tensorstore_spec")[0]
    if found := re.match(r'([A-Z_]+): .*?"([^"]+)/[\d.]*(?:\.zarray)?" in OCDBT.*?: (.*)', told):
        told = f"{found[1]} in {found[2]}: {found[3]}"
    return told[:200]


def _loss_file(folder: Path, step: int) -> Path:
    return folder / str(step) / "metrics" / "metrics"


def _has_loss(folder: Path, step: int) -> bool:
    try:
        return "loss" in json.loads(_loss_file(folder, step).read_text())
    except (OSError, ValueError) as error:
        if trouble(error):
            raise
        return False
