"""The Accelerate loop: any UDM, any data, any number of machines.

The loss of a step is the sum over everything the step saw, on all ranks and in all micro-batches, over the number of
elements it explains: accumulation and world size change nothing. All noise is keyed by (seed, sample, step), the order of
the samples by (seed, epoch): a run that was interrupted goes on bit for bit.

A run saves before it measures, shows and exports, and on any error: whatever ends it, what was trained is on the disk, and
the message says where and how to go on. That nobody takes the message, or the progress, ends no run.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Protocol

import torch
from torch import Tensor

from textdiff.config import as_yaml, settings_of
from textdiff.ema import Ema
from textdiff.keys import Key
from textdiff.launch import Interrupted, Signals, check_launch
from textdiff.optim import optimizers
from textdiff.options import PATH, Range, check_options
from textdiff.report import Report, Words
from textdiff.resuming import compare_fingerprints, compare_settings, compare_world, recorded
from textdiff.run_folder import CURVE, LOG, RECIPE, RunFolder
from textdiff.saving import newest_state, read_state, state_path, write_state
from textdiff.terminal import lasting
from textdiff.training_state import check_finite, gather, restore
from textdiff.udm import UDM

GO_ON = "The same command with --resume goes on"
LOWER = "lower trainer.lr"
MOST_STEPS = 10**9


@dataclass
class TrainerConfig:
    """How long, how fast, where to.

    Attributes:
        out: The folder of the run; it becomes the checkpoint.
        steps: Training ends after as many steps, or after `minutes`. The learning rate follows the one further on.
        minutes: Training ends after as many minutes, or after `steps`.
        batch: Examples per step, over all processes.
        accumulate: Micro-batches per step on each process.
        optimizer: adamw, or muon for the matrices of the body (slow on CPUs: torch's computes in bfloat16).
        lr: Peak learning rate of adamw.
        muon_lr: Peak learning rate of muon.
        embedding_lr: Peak learning rate of embeddings and head, as a share of lr.
        weight_decay: Of the body's matrices.
        beta2: Of adamw.
        warmup: Share of the run to warm up in.
        floor: The last learning rate, as a share of the peak.
        clip: Largest norm of the gradient.
        ema: Decay of the averaged weights that are measured and saved; 0 for none.
        seed: Of everything random.
        precision: bf16 is for GPUs, and slower on most CPUs.
        compile: torch.compile the body.
        log_every: Steps between lines of log.jsonl.
        measure_every: Steps between measurements on the validation split; 0 for only at the end.
        show_every: Steps between filled samples; 0 for only at the end.
        save_every: Steps between training states; 0 for only at the end.
        keep: Training states kept.
        resume: Go on from the newest state of `out`.
        overwrite: Begin anew although `out` holds a run.
    """

    out: Annotated[str, PATH] = "runs/model"
    steps: Annotated[int, Range(least=1, most=MOST_STEPS)] = 1000
    minutes: Annotated[float | None, Range(above=0, most=1e7)] = None
    batch: Annotated[int, Range(least=1, most=10**6)] = 16
    accumulate: Annotated[int, Range(least=1, most=10**6)] = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: Annotated[float, Range(above=0, most=1e3)] = 1e-3
    muon_lr: Annotated[float, Range(above=0, most=1e3)] = 0.02
    embedding_lr: Annotated[float, Range(least=0, most=1e3)] = 1.0
    weight_decay: Annotated[float, Range(least=0, most=1e3)] = 0.1
    beta2: Annotated[float, Range(least=0, below=1)] = 0.98
    warmup: Annotated[float, Range(least=0, most=1)] = 0.05
    floor: Annotated[float, Range(least=0, most=1)] = 0.1
    clip: Annotated[float, Range(above=0, most=1e9)] = 1.0
    ema: Annotated[float, Range(least=0, below=1)] = 0.0
    seed: Annotated[int, Range(least=0, most=10**12)] = 0
    precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    log_every: Annotated[int, Range(least=1, most=MOST_STEPS)] = 10
    measure_every: Annotated[int, Range(least=0, most=MOST_STEPS)] = 500
    show_every: Annotated[int, Range(least=0, most=MOST_STEPS)] = 500
    save_every: Annotated[int, Range(least=0, most=MOST_STEPS)] = 500
    keep: Annotated[int, Range(least=1, most=10**4)] = 2
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_options(self, "trainer")
        if self.batch % self.accumulate:
            raise ValueError(f"trainer.batch {self.batch} is no multiple of trainer.accumulate {self.accumulate}")
        if self.resume and self.overwrite:
            raise ValueError("trainer.resume goes on with a run, trainer.overwrite begins anew; give one of them")

    def check_world(self, processes: int) -> None:
        """Refuse a batch that does not divide over the processes and their micro-batches."""
        if self.batch % (processes * self.accumulate):
            raise ValueError(
                f"trainer.batch {self.batch} does not divide over {processes} processes x {self.accumulate} micro-batches "
                "(trainer.accumulate); give a multiple"
            )


class Feed(Protocol):
    """Where examples come from."""

    def __call__(self, start: int, rank: int, world: int) -> Iterator[list[tuple[int, Any]]]:
        """This rank's (sample number, example) of steps start, start + 1, ..., without end."""


@dataclass
class Job:
    """What the trainer trains on and reports with; everything that knows text or images is in here.

    Attributes:
        feed: Where examples come from.
        collate: Examples and their keys -> the batch x0 and the keys of its rows.
        measure: The validation bound and other figures of a UDM.
        show: Filled samples, one per line.
        export: Writes the checkpoint to a folder; of figures that could not be measured the facts have none.
        words: What the report calls all this.
        recipe: The configuration of the whole run, a dataclass; a resumed run is compared with it, and it is written down.
        kind: What `kind:` of its file is.
        fingerprints: Of what must be the same on resume: windows, tokenizer, model.
        attach: Writes what every state carries along, such as the tokenizer, to a folder.
        files: Names of the files that `show` writes to the run's folder.
    """

    feed: Feed
    collate: Callable[[Sequence[Any], Key], tuple[Any, Key]]
    measure: Callable[[UDM], dict[str, float]]
    show: Callable[[UDM], list[str]]
    export: Callable[[Path, dict[str, Any]], None]
    words: Words = field(default_factory=Words)
    recipe: Any = None
    kind: str = "text"
    fingerprints: dict[str, str] = field(default_factory=dict)
    attach: Callable[[Path], None] | None = None
    files: tuple[str, ...] = ()


class Trainer:
    """Trains a UDM. `run` returns the figures of the last measurement."""

    def __init__(self, udm: UDM, job: Job, config: TrainerConfig) -> None:
        from accelerate import Accelerator

        check_launch()
        self.config, self.job, self.out = config, job, Path(config.out)
        self.folder = RunFolder(self.out)
        self.folder.check(resume=config.resume, overwrite=config.overwrite)
        self.accelerator = Accelerator(mixed_precision=config.precision)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        check_launch(self.world)
        config.check_world(self.world)
        check_finite(udm, "before training", "train from another model")
        self.udm = udm
        if config.compile:
            body = udm.denoiser.model.base_model
            body.forward = torch.compile(body.forward, dynamic=True)
        chain = optimizers(
            udm, config.optimizer, config.lr, config.muon_lr,
            embedding_lr=config.embedding_lr, weight_decay=config.weight_decay, beta2=config.beta2,
        )  # fmt: skip
        self.model, *self.optimizers = self.accelerator.prepare(udm, *chain)
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.ema = Ema(self.udm, config.ema) if config.ema else None
        self.step, self.elapsed, self.skipped = 0, 0.0, 0
        self.stop, self.agreed = False, False  # this process was asked to stop; some process was
        self.signal, self.idle, self.at_once = 0, False, False  # see `launch.Stoppable`
        self.whole = True  # whether the weights are those of `step`, not of an update that is under way
        self.saved: tuple[int, Path] | None = None  # the newest state: its step, and where it is
        self.tried = 0  # the last step that was to be saved
        self.figures: dict[str, float] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """Every option of the run by its dotted name."""
        own = {f"trainer.{name}": value for name, value in settings_of(self.config).items()}
        return (settings_of(self.job.recipe) if self.job.recipe is not None else {}) | own

    # ------------------------------------------------------------------------------------------------------- the loop

    def run(self) -> dict[str, float]:
        """Train to the end, save, measure, export the checkpoint.

        Raises:
            Interrupted: After a signal, with everything saved.
            ValueError: For what stands in the way of the run, before the first step.
        """
        with lasting(), ExitStack() as stack:
            self._on_main(lambda: stack.enter_context(self.folder.held()))
            if self.config.resume:
                self._resume()
            self._on_main(self._begin)
            self.report = Report(self.out, self.accelerator, self.config.log_every, self.step, self.job.words)
            with Signals(self), self.report:
                self._on_main(self.folder.record_board)
                try:
                    self._train()
                    self._finish()
                except BaseException as error:
                    self._leave(error)
        return self.figures

    def _train(self) -> None:
        began = time.monotonic() - self.elapsed
        feed = iter(self.job.feed(self.step, self.rank, self.world))
        while self._progress() < 1:
            with self._idle():  # a stream may keep the run waiting
                examples = next(feed, None)
            if examples is None:
                raise ValueError(f"the data ended after {self.step} steps; give more data, or fewer trainer.steps")
            self._turn(examples)
            self.elapsed = self._shared_clock(time.monotonic() - began)
            self._periodic()

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """Where a signal may end the run right away. Not with several processes: the others would wait for this one."""
        self.idle = self.world == 1
        try:
            yield
        finally:
            self.idle = False

    def _on_main(self, action: Callable[[], object]) -> None:
        """Let the main process do something that may be refused; then all of them stop."""
        error: Exception | None = None
        if self.accelerator.is_main_process:
            try:
                action()
            except (ValueError, OSError) as caught:
                error = caught
        if self.world > 1:
            failed = torch.tensor(float(error is not None), device=self.accelerator.device)
            if float(self.accelerator.reduce(failed, "sum")) and error is None:
                raise Interrupted("")
        if error is not None:
            raise error

    def _turn(self, examples: list[tuple[int, Any]]) -> None:
        """One step: forward and backward over the micro-batches, one update."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.step * 1009 + self.accelerator.process_index)  # dropout
        rate = self._rate()
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
        self.model.train()
        sums = torch.zeros(3, dtype=torch.float64, device=self.accelerator.device)
        size = math.ceil(len(examples) / self.config.accumulate)
        for begin in range(0, len(examples), size):
            part = examples[begin : begin + size]
            last = begin + size >= len(examples)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                sums += self._backward(part)
        total, count, stop = self.accelerator.reduce(sums, "sum").tolist()
        self.agreed = bool(stop)
        norm = self._update(count)
        self.report.step(self.step, total / count, count, norm, rate, self._progress())

    def _backward(self, part: list[tuple[int, Any]]) -> Tensor:
        """Add the gradient of the summed loss; returns loss, count, and whether this rank was asked to stop."""
        samples = torch.tensor([number for number, _ in part])
        key = Key.of(self.config.seed, samples).fold(self.step)
        x0, key = self.job.collate([example for _, example in part], key)
        loss = self.model(x0.to(self.accelerator.device), key.fold(0).to(self.accelerator.device))
        self.accelerator.backward(loss.total)
        sums = [
            loss.total.detach().double(),
            loss.size.to(loss.total.device).double(),
            loss.total.new_tensor(self.stop),
        ]
        return torch.stack([value.double() for value in sums])

    def _update(self, count: float) -> float:
        """Divide the summed gradient by the global count, clip, step. A gradient that is not finite is skipped."""
        # DDP and FSDP average over ranks: undo that, the sum is over all of them
        scale = self.accelerator.num_processes / count
        torch._foreach_mul_([p.grad for p in self.udm.parameters() if p.grad is not None], scale)
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip))
        if math.isfinite(norm):
            self.whole = False
            for optimizer in self.optimizers:
                optimizer.step()
            self.skipped = 0
            if self.ema:
                self.ema.update()
        else:
            self.skipped += 1
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.step, self.whole = self.step + 1, True
        if self.skipped >= 10:
            raise ValueError(
                f"the gradient was not finite 10 times in a row, at step {self.step - 1}; lower trainer.lr"
            )
        return norm

    # ------------------------------------------------------------------------------------------------- time and rates

    def _progress(self) -> float:
        """How much of the run is done, from 0 to 1."""
        by_clock = self.elapsed / (60 * self.config.minutes) if self.config.minutes else 0.0
        return max(self.step / self.config.steps, by_clock)

    def _rate(self) -> float:
        """Warmup, then half a cosine down to `floor`; a factor of the peak learning rates."""
        done, config = min(self._progress(), 1.0), self.config
        if done < config.warmup:
            # progress by the clock is 0 at the first step, whose rate must not be
            return min(max(done, 1 / config.steps) / config.warmup, 1.0)
        share = (done - config.warmup) / (1 - config.warmup) if config.warmup < 1 else 0.0
        return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * share))

    def _shared_clock(self, seconds: float) -> float:
        """The first process's clock, so that all of them stop at the same step."""
        if self.accelerator.num_processes == 1 or not self.config.minutes:
            return seconds
        clock = torch.tensor([seconds if self.accelerator.is_main_process else 0.0], dtype=torch.float64)
        return float(self.accelerator.reduce(clock.to(self.accelerator.device), "sum"))

    # ------------------------------------------------------------------------------------------- measure, show, save

    def _periodic(self) -> None:
        config, end = self.config, self._progress() >= 1
        if self.agreed:
            raise Interrupted("", self.signal or 2)
        if config.save_every and self.step % config.save_every == 0 and not end:
            self._save()
        if config.measure_every and self.step % config.measure_every == 0 and not end:
            self._measure()
        if config.show_every and self.step % config.show_every == 0 and not end:
            self._show()

    def _finish(self) -> None:
        """Save; then measure, show and export. What fails to be measured or shown is exported all the same."""
        self._save()
        failure: Exception | None = None
        for action in (self._measure, self._show):
            try:
                action()
            except Exception as error:
                failure = failure or error
        self._export()
        if failure is not None:
            raise failure

    def _measure(self) -> None:
        with self._averaged(), torch.no_grad(), self._idle():
            self.figures = self.job.measure(self.udm)
        self.report.measured(self.step, self.figures)

    def _show(self) -> None:
        with self._averaged(), torch.no_grad(), self._idle():
            lines = self.job.show(self.udm)
        self.report.samples(self.step, lines)

    def _averaged(self) -> Any:
        self.udm.eval()
        return self.ema.swapped() if self.ema else nullcontext()

    def _export(self) -> None:
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        figures = {name: value for name, value in self.figures.items() if math.isfinite(value)}
        facts = {"steps": self.step, "seconds": round(self.elapsed), **figures}
        with self._averaged():
            check_finite(self.udm, f"at step {self.step}", LOWER)
            with self.folder.exported() as part:
                self.job.export(part, facts)
        self.report.curve(self.out / CURVE)

    def _save(self, together: bool = True) -> Path:
        """Write a state. together: all processes are here, as they must be where each holds a part of the weights."""
        self.tried = self.step
        weights = self.accelerator.get_state_dict(self.model)
        tensors, facts = gather(weights, self.udm, self.optimizers, self.ema)
        check_finite(self.udm, f"at step {self.step}", LOWER, tensors)
        facts |= {
            "step": self.step,
            "elapsed": self.elapsed,
            "seed": self.config.seed,
            "settings": recorded(self.settings),
            "fingerprints": self.job.fingerprints,
            "world": self.world,
        }
        path = state_path(self.folder.states, self.step)
        if self.accelerator.is_main_process:
            write_state(self.folder.states, self.step, tensors, facts, self.config.keep, self.job.attach)
        if together:
            self.accelerator.wait_for_everyone()
        self.saved = (self.step, path)
        return path

    # ------------------------------------------------------------------------------------------------ begin and leave

    def _begin(self) -> None:
        """Mark the folder, and write down what the run is."""
        self.folder.check(resume=self.config.resume, overwrite=self.config.overwrite, held=True)
        self.folder.begin(keep=self.config.resume)
        for name in (LOG, CURVE, *self.job.files):
            self.folder.claim(name)
        if self.job.recipe is not None:
            comment = "The recipe of this run: textdiff train --config FILE reads it."
            self.folder.write(RECIPE, as_yaml(self.settings, self.job.kind, comment))

    def _resume(self) -> None:
        state, damaged = newest_state(self.folder.states)
        for path in damaged:
            self.accelerator.print(f"{path} is damaged and was passed over")
        if state is None:
            raise ValueError(f"{self.out} has no training state to resume; leave --resume out to begin")
        tensors, facts = read_state(state)
        told = compare_settings(state, facts, self.settings)
        compare_fingerprints(state, facts, self.job.fingerprints, self.settings)
        for line in [*told, *compare_world(facts, self.world)]:
            self.accelerator.print(line)
        restore(state, tensors, facts, self.udm, self.optimizers, self.ema)
        self.step, self.elapsed = facts["step"], facts["elapsed"]
        self.saved = (self.step, state)
        self.accelerator.print(f"resumed {state} at step {self.step}")

    def _leave(self, error: BaseException) -> NoReturn:
        """End a run that cannot go on: save what was trained, and say on the error where it is."""
        self.idle = False
        where = self._rescue(isinstance(error, Interrupted) and self.agreed)
        if isinstance(error, KeyboardInterrupt):
            code = self.signal or 2
            message = f"stopped at step {self.step}; {where}" if self.accelerator.is_main_process else ""
            raise Interrupted(message, code) from None
        if _out_of_memory(error):
            error = ValueError(f"out of memory ({str(error).splitlines()[0]}); raise trainer.accumulate")
        error.add_note(f"Trained to step {self.step}; {where}.")
        raise error

    def _rescue(self, together: bool) -> str:
        """Save a step that is not saved, unless the user cannot wait; return where the newest state is."""
        due = self.step not in (0, self.saved_step, self.tried)  # what failed once is not tried again
        if due and self.whole and not self.at_once and self._holds_all(together):
            try:
                self._save(together)
            except (OSError, ValueError, RuntimeError) as failure:
                return f"this step could not be saved ({failure}); {self._newest()}"
        return f"saved {self.saved[1]}. {GO_ON}" if self.saved and self.saved_step == self.step else self._newest()

    @property
    def saved_step(self) -> int:
        return self.saved[0] if self.saved else 0

    def _newest(self) -> str:
        if self.saved is None:
            return "nothing was saved"
        return f"the newest state is {self.saved[1]}. {GO_ON} from there"

    def _holds_all(self, together: bool) -> bool:
        """Whether this process can save: all of them are here, or it is the first and has all weights itself."""
        replicated = self.accelerator.distributed_type.value in ("NO", "MULTI_CPU", "MULTI_GPU")
        return together or (replicated and self.accelerator.is_main_process)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
