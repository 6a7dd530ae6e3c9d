"""The Accelerate loop: any UDM, any data, any number of machines.

The loss of a step is the sum over everything the step saw, on all ranks and in all micro-batches, over the number of
elements it explains: accumulation and world size change nothing. All noise is keyed by (seed, sample, step), the order of
the samples by (seed, epoch): a run that was interrupted goes on bit for bit.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from textdiff.ema import Ema
from textdiff.keys import Key
from textdiff.launch import Signals, check_launch
from textdiff.optim import optimizers
from textdiff.report import Report, Words
from textdiff.saving import fits, flatten, newest_state, read_state, unflatten, without_ties, write_state
from textdiff.udm import UDM


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and saved."""


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

    out: str = "runs/model"
    steps: int = 1000
    minutes: float | None = None
    batch: int = 16
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    muon_lr: float = 0.02
    embedding_lr: float = 1.0
    weight_decay: float = 0.1
    beta2: float = 0.98
    warmup: float = 0.05
    floor: float = 0.1
    clip: float = 1.0
    ema: float = 0.0
    seed: int = 0
    precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    log_every: int = 10
    measure_every: int = 500
    show_every: int = 500
    save_every: int = 500
    keep: int = 2
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "keep", "lr", "clip", "log_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"trainer.{name} {getattr(self, name)} is not positive; give a number above 0")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"trainer.minutes {self.minutes} is not positive; leave it out to count steps alone")
        if self.embedding_lr < 0:
            raise ValueError(f"trainer.embedding_lr {self.embedding_lr} is negative; 0 freezes embeddings and head")
        if self.batch % self.accumulate:
            raise ValueError(f"trainer.batch {self.batch} is no multiple of trainer.accumulate {self.accumulate}")


class Feed(Protocol):
    """Where examples come from."""

    def __call__(self, start: int, rank: int, world: int) -> Iterator[list[tuple[int, Any]]]:
        """This rank's (sample number, example) of steps start, start + 1, ..., without end."""


@dataclass
class Job:
    """What the trainer trains on and reports with; everything that knows text or images is in here.

    collate: examples and their keys -> the batch x0 and the keys of its rows. measure: the validation bound and other
    figures of a UDM. show: filled samples, one per line. export: write the checkpoint to a folder. words: what the report
    calls all this.
    """

    feed: Feed
    collate: Callable[[Sequence[Any], Key], tuple[Any, Key]]
    measure: Callable[[UDM], dict[str, float]]
    show: Callable[[UDM], list[str]]
    export: Callable[[Path, dict[str, Any]], None]
    words: Words = field(default_factory=Words)


class Trainer:
    """Trains a UDM. `run` returns the figures of the last measurement."""

    def __init__(self, udm: UDM, job: Job, config: TrainerConfig) -> None:
        from accelerate import Accelerator

        check_launch()
        self.config, self.job, self.out = config, job, Path(config.out)
        self.accelerator = Accelerator(mixed_precision=config.precision)
        check_launch(self.accelerator.num_processes)
        world = self.accelerator.num_processes
        if config.batch % (world * config.accumulate):
            raise ValueError(f"trainer.batch {config.batch} does not divide over {world} processes x accumulate")
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
        self.figures: dict[str, float] = {}

    # ------------------------------------------------------------------------------------------------------- the loop

    def run(self) -> dict[str, float]:
        """Train to the end, measure, save the checkpoint. Interrupted after Ctrl-C or SIGTERM, with everything saved."""
        if self.config.resume:
            self._resume()
        else:
            self._begin()
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        self.report = Report(self.out, self.accelerator, self.config.log_every, self.step, self.job.words)
        with Signals(self), self.report:
            began = time.monotonic() - self.elapsed
            for examples in self.job.feed(self.step, rank, world):
                if self._progress() >= 1:
                    break
                self._turn(examples)
                self.elapsed = self._shared_clock(time.monotonic() - began)
                self._periodic()
            self._finish()
        return self.figures

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
        self.step += 1
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
            for optimizer in self.optimizers:
                optimizer.step()
            self.skipped = 0
            if self.ema:
                self.ema.update()
        else:
            self.skipped += 1
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if self.skipped >= 10:
            raise ValueError(f"the gradient was not finite 10 times in a row, at step {self.step}; lower trainer.lr")
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
            path = self._save()
            self.report.close()
            raise Interrupted(f"stopped at step {self.step}; saved {path}. The same command with --resume goes on")
        if config.measure_every and self.step % config.measure_every == 0 and not end:
            self._measure()
        if config.show_every and self.step % config.show_every == 0 and not end:
            self._show()
        if config.save_every and self.step % config.save_every == 0 and not end:
            self._save()

    def _finish(self) -> None:
        self._measure()
        self._show()
        self._save()
        with self._averaged():
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                facts = {"steps": self.step, "seconds": round(self.elapsed), **self.figures}
                self.job.export(self.out, facts)
                self.report.curve()

    def _measure(self) -> None:
        with self._averaged(), torch.no_grad():
            self.figures = self.job.measure(self.udm)
        self.report.measured(self.step, self.figures)

    def _show(self) -> None:
        with self._averaged(), torch.no_grad():
            self.report.samples(self.step, self.job.show(self.udm))

    def _averaged(self) -> Any:
        self.udm.eval()
        return self.ema.swapped() if self.ema else nullcontext()

    def _save(self) -> Path:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        tensors = {"model": without_ties(self.accelerator.get_state_dict(self.model))}
        facts: dict[str, Any] = {"step": self.step, "elapsed": self.elapsed, "seed": self.config.seed}
        for number, optimizer in enumerate(self.optimizers):
            state = get_optimizer_state_dict(self.udm, optimizer.optimizer, options=options)
            if state:  # the first process alone gets all of it
                tensors[f"optimizer{number}"], facts[f"optimizer{number}"] = flatten(state)
        if self.ema:
            tensors["ema"] = self.ema.state()
        path = self.out / "states"
        if self.accelerator.is_main_process:
            path = write_state(path, self.step, tensors, facts, self.config.keep)
        self.accelerator.wait_for_everyone()
        return path

    def _begin(self) -> None:
        """A new run in a place of its own. States of the run that is overwritten must not be taken for its own later."""
        states = self.out / "states"
        if not self.config.overwrite and ((self.out / "config.json").exists() or newest_state(states)[0] is not None):
            raise ValueError(f"{self.out} already holds a run: --resume goes on with it, --overwrite begins anew")
        self.accelerator.wait_for_everyone()  # all have looked
        if self.accelerator.is_main_process:
            shutil.rmtree(states, ignore_errors=True)

    def _resume(self) -> None:
        state, damaged = newest_state(self.out / "states")
        for path in damaged:
            self.accelerator.print(f"{path} is damaged and was passed over")
        if state is None:
            raise ValueError(f"{self.out} has no training state to resume; leave --resume out to begin")
        tensors, facts = read_state(state)
        if facts["seed"] != self.config.seed:
            raise ValueError(
                f"{state} was trained with seed {facts['seed']}, not {self.config.seed}; give the same seed"
            )
        wanted = {
            "model",
            *(f"optimizer{number}" for number in range(len(self.optimizers))),
            *(["ema"] if self.ema else []),
        }
        if set(tensors) != wanted or not fits(without_ties(self.udm.state_dict()), tensors["model"]):
            raise ValueError(f"{state} holds another model or optimizer; give the options it was trained with")
        self.udm.load_state_dict(tensors["model"], strict=False)  # of tied weights, one is there
        options = StateDictOptions(full_state_dict=True)
        for number, optimizer in enumerate(self.optimizers):
            whole = unflatten(tensors[f"optimizer{number}"], facts[f"optimizer{number}"])
            set_optimizer_state_dict(self.udm, optimizer.optimizer, whole, options=options)
        if self.ema:
            self.ema.load(tensors["ema"])
        self.step, self.elapsed = facts["step"], facts["elapsed"]
        self.accelerator.print(f"resumed {state} at step {self.step}")
