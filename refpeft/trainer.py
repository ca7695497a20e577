"""`refpeft.train`: the pure loop of `refpeft.training` with a progress bar and checkpoints to resume from.

A run that is cut anywhere and called again goes on to the same bits (clause TR-7); `refpeft.training_checkpoint` says how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from refpeft import inputs, ops
from refpeft.arrays import Array, Parameters, to_host
from refpeft.config import PromptTuningConfig
from refpeft.errors import ConfigError, InputError
from refpeft.peft_model import PeftModel
from refpeft.rules import SIZE
from refpeft.training import StepRecord, TrainingArguments, initial_state, take_step
from refpeft.training_checkpoint import Store, identity_of, series_of

_KEYS = ("input_ids", "labels", "attention_mask", "position_ids")

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class TrainingResult:
    """What was seen at each step of the optimiser; the model itself holds the trained parameters."""

    losses: NDArray[Any]
    """(steps): the mean of the micro-batches' losses, before the step's update."""
    learning_rates: NDArray[Any]
    """(steps)."""
    gradient_norms: NDArray[Any]
    """(steps): before clipping."""


def train(
    model: PeftModel,
    batches: Sequence[Batch],
    arguments: TrainingArguments,
    *,
    progress: bool = True,
    directory: str | Path | None = None,
    save_steps: int | numpy.integer[Any] | None = None,
    on_step: Callable[[int, PeftModel], object] | None = None,
) -> TrainingResult:
    """Train the virtual tokens of a model; the base stays frozen. Clauses TR-1 to TR-7.

    Source: refpeft's own loop; what a step computes is `refpeft.training`'s, and HF's.

    Args:
        model: What is trained, in place: it holds the parameters of the last whole step, whatever ends the call.
        batches: The micro-batches in order, each a mapping of `input_ids`, `labels`, and where wanted `attention_mask`
            and `position_ids`, as `model(...)` takes them. After the last comes the first again.
        arguments: How to train.
        progress: Show a bar on standard error, if that is a terminal, and say there where a checkpoint is gone on from.
        directory: Where to keep a checkpoint: at the end, and when an exception or Ctrl-C ends the call. If it holds one
            of the same training, the call goes on from there, to the same bits as without the cut; if that training is
            complete, it takes no step. All batches are then checked beforehand. A process that is killed (SIGTERM,
            SIGKILL, loss of power) keeps nothing at that moment: give `save_steps` too.
        save_steps: Also keep one after every so many steps; None: only at the end.
        on_step: Called after each step with the number of steps taken, from 1, and the model.

    Raises:
        InputError: a batch does not fit the model, what is given is not a model, batches and arguments, or training
            diverges: a loss, gradient or parameter is infinite or NaN, or some number overflows.
        ConfigError: `save_steps` is not a positive integer, or there is no directory to save to.
        CheckpointError: the checkpoint is damaged or of another training, or cannot be written.
    """
    _check_given(model, batches, arguments)
    save_steps = save_steps.item() if isinstance(save_steps, numpy.integer) else save_steps
    if save_steps is not None:
        SIZE.check("save_steps", save_steps)
        if directory is None:
            raise ConfigError("save_steps needs a directory to keep the checkpoints in.")
    run = _Run(model, batches, arguments, directory)
    try:
        with _bar(run, shown=progress) as advance:
            while run.state.step < arguments.max_steps:
                advance(run.take_step())
                if on_step is not None:
                    on_step(run.state.step, model)
                if save_steps is not None and run.state.step % save_steps == 0:
                    run.keep()
    except KeyboardInterrupt as interrupt:
        run.keep()
        interrupt.add_note(run.where())
        raise
    finally:
        run.keep()
    series = series_of(run.history[: run.state.step])
    return TrainingResult(series["loss"], series["learning_rate"], series["gradient_norm"])


class _Run:
    """One call of `train`: where it is, and what of it is kept."""

    def __init__(
        self,
        model: PeftModel,
        batches: Sequence[Batch],
        arguments: TrainingArguments,
        directory: str | Path | None,
    ) -> None:
        self.model, self.batches, self.arguments = model, batches, arguments
        initial = model.trainable_parameters()
        self.state, self.history = initial_state(initial), list[StepRecord]()
        self.store: Store | None = None
        if directory is not None:
            checked = (_canonical(model, batches, number) for number in range(len(batches)))
            identity = identity_of(model, arguments, checked, len(batches))
            self.store = Store(Path(directory), identity, initial)
            self.state, self.history = self.store.load() or (self.state, self.history)
        self.saved = self.first = self.state.step
        model.load_trainable_parameters(self.state.parameters)

    def take_step(self) -> StepRecord:
        """One step of the optimiser; the model has its parameters.

        Raises:
            InputError: a batch does not fit, or something is not finite. Then the step has not been taken.
        """
        try:
            with numpy.errstate(over="raise", invalid="ignore"):
                following, seen = take_step(self.state, self.arguments, self._loss_and_gradient)
        except FloatingPointError as error:
            raise self._divergence(f"{error}") from error
        record = replace(seen, loss=to_host(seen.loss), gradient_norm=to_host(seen.gradient_norm))
        values = [record.gradient_norm, *map(to_host, following.parameters.values())]
        if not all(numpy.isfinite(value).all() for value in values):
            raise self._divergence(
                f"the norm of the gradient is {record.gradient_norm}, the loss {record.loss}"
            )
        self.history.append(record)
        self.state = following  # the one moment at which the step has been taken
        self.model.load_trainable_parameters(following.parameters)
        return record

    def _loss_and_gradient(self, parameters: Parameters, number: int) -> tuple[Array, dict[str, Array]]:
        number %= len(self.batches)
        batch = _checked_batch(self.batches, number)
        try:
            loss, gradients = self.model.value_and_grad(**batch)
        except InputError as error:
            raise InputError(f"Batch {number}: {error}") from error
        if not numpy.isfinite(to_host(loss)) and _counts(self.model, batch["labels"]):
            raise self._divergence(f"the loss of batch {number} is {loss}")
        return loss, gradients

    def _divergence(self, what: str) -> InputError:
        return InputError(
            f"Training diverges at step {self.state.step + 1}: {what}. The model keeps the parameters of step "
            f"{self.state.step}. Try a smaller learning_rate or max_grad_norm."
        )

    def keep(self) -> None:
        """Leave the model at the last whole step, and keep that step if it is not kept already."""
        self.model.load_trainable_parameters(self.state.parameters)
        if self.store is not None and self.saved < self.state.step:
            self.store.save(self.state, self.history)
            self.saved = self.state.step

    def where(self) -> str:
        """What is left of a run that was interrupted."""
        taken = f"step {self.state.step} of {self.arguments.max_steps}"
        if self.store is None:
            return f"The model holds the parameters of {taken}. Nothing was kept in a file: train was given no directory."
        if self.state.step == 0:
            return "No step was taken, and none kept."
        return f"{taken.capitalize()} was kept in '{self.store.path(self.state.step)}'. Call train as before to go on."

    def begun(self) -> str:
        """What was found in the directory, to be said; empty if nothing was."""
        total = self.arguments.max_steps
        if self.store is None or self.first == 0:
            return ""
        if self.first == total:
            return f"{self.store.directory} is already complete: {total} steps"
        return f"going on from step {self.first} of {total} in {self.store.directory}"


def _check_given(model: Any, batches: Any, arguments: Any) -> None:
    if not isinstance(model, PeftModel):
        raise InputError(
            f"model must be a PeftModel, not a {type(model).__name__}: without virtual tokens there is nothing to train. "
            "Make one with refpeft.get_peft_model(base, config)."
        )
    if not isinstance(arguments, TrainingArguments):
        raise InputError(
            f"arguments must be TrainingArguments, not a {type(arguments).__name__}. Give for instance "
            "refpeft.TrainingArguments(max_steps=100, learning_rate=0.01)."
        )
    if not isinstance(batches, Sequence):
        raise InputError(
            f"batches must be a list of batches, not a {type(batches).__name__}: training goes through it again and again."
        )
    if not batches:
        raise InputError("There are no batches to train on.")


def _checked_batch(batches: Sequence[Any], number: int) -> dict[str, Any]:
    batch = batches[number]
    if not isinstance(batch, Mapping) or not {"input_ids", "labels"} <= set(batch) <= set(_KEYS):
        given = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise InputError(
            f"Batch {number} has {given}; a batch is a mapping of input_ids, labels, and where wanted attention_mask and "
            "position_ids."
        )
    return dict(batch)


def _canonical(model: PeftModel, batches: Sequence[Any], number: int) -> dict[str, NDArray[Any]]:
    """A batch as integers of one format: what the model would compute on, however it was given."""
    batch, base, virtual = _checked_batch(batches, number), model.base.config, model.config.num_virtual_tokens
    mask, positions = batch.get("attention_mask"), batch.get("position_ids")
    try:
        ids = inputs.checked_ids(batch["input_ids"], base, virtual)
        found = {
            "input_ids": ids,
            "labels": inputs.checked_labels(batch["labels"], ids.shape, base.vocab_size),
        }
        if mask is not None:
            found["attention_mask"] = inputs.checked_mask(mask, ids.shape, virtual)
        if positions is not None and not isinstance(model.config, PromptTuningConfig):  # which ignores them
            found["position_ids"] = inputs.checked_positions(positions, ids.shape, virtual, base)
    except InputError as error:
        raise InputError(f"Batch {number}: {error}") from error
    return {name: value.astype("<i8") for name, value in found.items()}


def _counts(model: PeftModel, labels: Any) -> bool:
    """Whether any label takes part in the loss; a prompt predicts the first token too (TK-1)."""
    first = 0 if isinstance(model.config, PromptTuningConfig) else 1
    return bool((to_host(labels)[:, first:] != ops.IGNORE_INDEX).any())


@contextmanager
def _bar(run: _Run, *, shown: bool) -> Iterator[Callable[[StepRecord], None]]:
    """A progress bar on standard error, after a line on where the run begins; gives a function to call after each step."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console, begun = Console(stderr=True), run.begun()
    shown = shown and console.is_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    if shown and begun:
        console.print(begun, markup=False, highlight=False, soft_wrap=True)
    with Progress(*columns, console=console, disable=not shown) as progress:
        total, done = run.arguments.max_steps, run.state.step
        description = "complete" if done == total else f"from step {done}" if done else "training"
        task = progress.add_task(description, total=total, completed=done)
        yield lambda record: progress.update(task, advance=1, description=f"loss {float(record.loss):.4f}")
