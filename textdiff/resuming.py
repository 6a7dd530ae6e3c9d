"""What a resumed run may change: a run that goes on is the same run, or says what differs.

A state records the run's options, fingerprints of its windows, tokenizer and model, and the number of processes. `CHANGES`
says of every option whether it may differ on resume; what may not is refused with both values and the remedy.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

Change = Literal["free", "told", "fingerprint", "fixed"]

# free: steers the length of the run, its reports and its samples. told: the steps stay the same up to rounding, which is
# said. fingerprint: only a name, and what it names is compared. fixed: another value is another run.
_FREE = """trainer.out trainer.steps trainer.minutes trainer.log_every trainer.measure_every trainer.show_every
    trainer.save_every trainer.keep trainer.resume trainer.overwrite examples data.validation_split
    diffusion.staged diffusion.num_steps diffusion.rule diffusion.temperature diffusion.top_k diffusion.top_p
    diffusion.max_gap diffusion.candidates diffusion.clip variance"""
_TOLD = "trainer.accumulate trainer.compile"
_FINGERPRINT = """data.dataset data.config data.split data.text_column data.image_column data.label_column data.size
    data.mode model.path"""
_FIXED = """trainer.batch trainer.optimizer trainer.lr trainer.muon_lr trainer.embedding_lr trainer.weight_decay
    trainer.beta2 trainer.warmup trainer.floor trainer.clip trainer.ema trainer.seed trainer.precision
    data.streaming data.context data.shortest data.packed tokenizer.path tokenizer.vocab model.preset
    model.weights model.lora model.start model.context model.family model.channels model.layers model.attention
    model.dropout diffusion.denoiser diffusion.process diffusion.schedule diffusion.counts diffusion.different
    diffusion.masked diffusion.edits diffusion.backbone diffusion.shift diffusion.block
    diffusion.self_conditioning diffusion.bidirectional diffusion.highest diffusion.noise diffusion.predict
    diffusion.loss noise.spans noise.counted objective.weighted objective.blank objective.power objective.steps"""
CHANGES: dict[str, Change] = {
    **dict.fromkeys(_FREE.split(), "free"),
    **dict.fromkeys(_TOLD.split(), "told"),
    **dict.fromkeys(_FINGERPRINT.split(), "fingerprint"),
    **dict.fromkeys(_FIXED.split(), "fixed"),
}
NAMED = {"windows": "data.dataset", "images": "data.dataset", "tokenizer": "tokenizer.path", "model": "model.path"}
UNRECORDED = (
    "was written by an older version, which recorded neither the options nor the data set: only the seed and the shapes of "
    "the weights are compared"
)
REMEDY = "or train it as another run, with another trainer.out"


def recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a state records: those that must not change unnoticed."""
    return {name: value for name, value in settings.items() if CHANGES.get(name, "fixed") != "free"}


def compare_settings(state: Path, facts: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Compare the options of a resumed run with those that its state records.

    Args:
        facts: The state's, with "settings" unless an older version wrote it.
        settings: The options of the run that is to go on, by their dotted names.

    Returns:
        What differs and makes no other run, a sentence each.

    Raises:
        ValueError: For options that make it another run: each with both values and the remedy; for fewer steps than it has.
    """
    if "settings" not in facts:
        if facts.get("seed", 0) != settings.get("trainer.seed", 0):
            raise ValueError(_refusal(state, [("trainer.seed", facts.get("seed"), settings.get("trainer.seed"))]))
        _check_steps(state, facts, settings)
        return [f"{state} {UNRECORDED}"]
    before, present = facts["settings"], recorded(settings)
    changed = [(name, before[name], value) for name, value in present.items() if before.get(name, value) != value]
    refused = [change for change in changed if CHANGES.get(change[0], "fixed") == "fixed"]
    if refused:
        raise ValueError(_refusal(state, refused))
    _check_steps(state, facts, settings)
    return [
        f"{name} was {_word(old)} and is {_word(new)}: the steps stay the same up to rounding (not dropout, nor packed rows)"
        for name, old, new in changed
        if CHANGES.get(name) == "told"
    ]


def _check_steps(state: Path, facts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    done, steps = facts.get("step", 0), settings.get("trainer.steps")
    if steps is not None and steps < done:
        raise ValueError(
            f"{state} has {done} steps, more than trainer.steps {steps}; give --trainer.steps {done} or more, {REMEDY}"
        )


def compare_fingerprints(
    state: Path, facts: Mapping[str, Any], fingerprints: Mapping[str, str], settings: Mapping[str, Any]
) -> None:
    """Compare what a resumed run learns from, reads with and trains with what its state records.

    Raises:
        ValueError: For the first that differs, with the option that names it, both fingerprints and the remedy.
    """
    before = facts.get("fingerprints", {})
    for name, value in fingerprints.items():
        if name in before and before[name] != value:
            option = NAMED[name]
            old, new = facts.get("settings", {}).get(option), settings.get(option)
            raise ValueError(
                f"{state} was trained with other {name}: {before[name]} ({option} {_word(old)}) then, {value} ({option} "
                f"{_word(new)}) now; give the {name} it was trained with, {REMEDY}"
            )


def compare_world(facts: Mapping[str, Any], world: int) -> list[str]:
    """Return what differs where a run goes on with another number of processes."""
    before = facts.get("world", world)
    if before == world:
        return []
    return [f"{before} processes trained it and {world} go on: the steps stay the same up to rounding (not dropout)"]


def fingerprint(parts: Iterable[bytes]) -> str:
    """Return a short hash of bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def fingerprint_of_model(model: Any) -> str:
    """Return the fingerprint of a model's architecture: its configuration, without where it came from."""
    volatile = ("transformers_version", "dtype", "torch_dtype")
    config = dict(model.config) if isinstance(model.config, Mapping) else model.config.to_dict()
    # what begins with "_" is the library's own: where a config came from, and in no order what it took by default
    kept = {name: value for name, value in config.items() if not name.startswith("_") and name not in volatile}
    name = f"{type(model).__name__} "
    return name + fingerprint([json.dumps(kept, sort_keys=True, default=str).encode()])


def fingerprint_of_tokenizer(tokenizer: Any) -> str:
    """Return the fingerprint of a tokenizer: its entries and their ids, and which of them are special."""
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    content = json.dumps([entries, sorted(tokenizer.all_special_ids)], ensure_ascii=True)
    return f"{len(tokenizer):,} tokens, {fingerprint([content.encode()])}"


def _refusal(state: Path, changes: list[tuple[str, Any, Any]]) -> str:
    differing = ", ".join(f"{name} {_word(old)}, not {_word(new)}" for name, old, new in changes)
    remedy = " ".join(_option(name.replace("_", "-"), old) for name, old, _ in changes)
    return f"{state} was trained with {differing}; give {remedy}, {REMEDY}"


def _option(name: str, value: Any) -> str:
    """Return how the command line writes an option."""
    if not isinstance(value, bool):
        return f"--{name} {_word(value)}"
    section, dot, last = name.rpartition(".")
    return f"--{section}{dot}{'' if value else 'no-'}{last}"


def _word(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
