"""Tokenizers whose user text is always text: training one, preparing someone else's, reading back the special ids.

Byte-level BPE without a normaliser is lossless: decode(encode(text)) == text for every Unicode string. A Hugging Face
tokenizer reads the six characters "[MASK]" in a user's text as the command [MASK] unless `split_special_tokens=True`,
so every tokenizer here has that set, and it is saved with the tokenizer. Special tokens enter a text by id only.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textdiff.loading import from_pretrained
from textdiff.tokens import Specials

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, BOS, MASK, GAP, FILL, END = "[PAD]", "[BOS]", "[MASK]", "[GAP]", "[FILL]", "[END]"
BYTES = 256
REMEDY = "pass the tokenizer through prepare_tokenizer first, and resize the model's embeddings to len(tokenizer)"


def length_names(lengths: int) -> list[str]:
    """Names of the length tokens for 0..lengths missing tokens; none where lengths is 0."""
    return [f"<|{k}|>" for k in range(lengths + 1)] if lengths > 0 else []


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4000, lengths: int = 0) -> "PreTrainedTokenizerFast":
    """Byte-level BPE learned from `texts`, with the special tokens of this library.

    `vocab_size` counts everything (specials, 256 bytes, merges); a small corpus may yield fewer. The caller sets
    `model_max_length`. Raises ValueError if `vocab_size` leaves no room for bytes and specials.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    names = [PAD, BOS, MASK, GAP, FILL, END, *length_names(lengths)]
    least = len(names) + BYTES
    if vocab_size < least:
        raise ValueError(f"vocab_size={vocab_size} is too small: {BYTES} bytes and {len(names)} specials need {least}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        # a mask takes the space before it along, as the word would that it stands for
        special_tokens=[AddedToken(name, lstrip=name == MASK, special=True) for name in names],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # a set: its order would vary from run to run
        show_progress=False,
    )
    bpe.train_from_iterator(map(_checked, texts), trainer)
    # for those who open a checkpoint without this library: texts begin with BOS, as they did in training
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        mask_token=AddedToken(MASK, lstrip=True, special=True),
        extra_special_tokens=[GAP, FILL, END, *length_names(lengths)],
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def prepare_tokenizer(tokenizer: "PreTrainedTokenizerBase", lengths: int = 0) -> "PreTrainedTokenizerBase":
    """Add to any tokenizer, in place, what it lacks of the special tokens, and make user text text; returns it.

    Its own pad, mask and first token (cls, else bos) are used where it has them. The vocabulary may grow: resize the
    model's embeddings to `len(tokenizer)` afterwards. Doing it twice changes nothing. Known limit: a Unigram tokenizer
    (T5) still reads its *own* specials ("</s>", "<extra_id_0>") in user text as such: they are words of its model.
    """
    own = {"pad_token": PAD, "mask_token": MASK}
    if tokenizer.cls_token is None:
        own["bos_token"] = BOS
    missing = {role: name for role, name in own.items() if getattr(tokenizer, role) is None}
    tokenizer.add_special_tokens(missing)
    present = _special_ids(tokenizer)
    extra = [name for name in (GAP, FILL, END, *length_names(lengths)) if name not in present]
    tokenizer.add_special_tokens({"extra_special_tokens": extra}, replace_extra_special_tokens=False)
    tokenizer.split_special_tokens = True
    tokenizer.init_kwargs["split_special_tokens"] = True  # what save_pretrained writes
    return tokenizer


def specials(tokenizer: "PreTrainedTokenizerBase") -> Specials:
    """The ids of the special tokens of a trained or prepared tokenizer.

    `banned` holds every other special id (CLS, SEP, UNK, EOS, ...). Raises ValueError naming the first token missing.
    """
    ids = _special_ids(tokenizer)
    first = tokenizer.cls_token or tokenizer.bos_token
    for role, name in {"pad": tokenizer.pad_token, "BOS": first, "mask": tokenizer.mask_token}.items():
        if name is None:
            raise ValueError(f"the tokenizer has no {role} token: {REMEDY}")
    for name in (GAP, FILL, END):
        if name not in ids:
            raise ValueError(f"the tokenizer has no {name} token: {REMEDY}")
    lengths: list[int] = []
    while (name := f"<|{len(lengths)}|>") in ids:
        lengths.append(ids[name])
    roles = {
        "pad": tokenizer.pad_token,
        "bos": first,
        "mask": tokenizer.mask_token,
        "gap": GAP,
        "fill": FILL,
        "end": END,
    }
    named = {role: ids[name] for role, name in roles.items()}
    banned = sorted({*ids.values(), *tokenizer.all_special_ids} - {*named.values(), *lengths})
    return Specials(
        pad=named["pad"],
        bos=named["bos"],
        mask=named["mask"],
        gap=named["gap"],
        fill=named["fill"],
        end=named["end"],
        lengths=tuple(lengths),
        banned=tuple(banned),
        size=len(tokenizer),
    )


def stock_specials(tokenizer: "PreTrainedTokenizerBase", model: Any) -> Specials:
    """The special ids for a stock model with the tokenizer it came with, prepared or not; neither is changed.

    `size` is the number of rows of the model's output. What the model lacks is virtual: ids from `size` on, each its own,
    which must never be fed to it: gap, fill and end always, mask where neither the tokenizer nor `config.mask_token_id`
    (LLaDA) names one, bos where no token can stand first. pad is a special token of the model where it has any, since it is
    fed, without being seen. `banned`: every special token, and every row of the output that the tokenizer has no entry for.
    """
    config, ids, vocabulary = model.config, _special_ids(tokenizer), set(tokenizer.get_vocab().values())
    head = model.get_output_embeddings()
    rows = getattr(head, "weight", None)  # Perceiver has no such layer, MusicGen several
    size = config.vocab_size if rows is None else rows.shape[0]
    virtual = iter(range(max(size, len(tokenizer), max(vocabulary) + 1), sys.maxsize))

    def first(*candidates: int | None) -> int:
        real = (number for number in candidates if number is not None and 0 <= number < size)
        return next(real, -1)

    before, after = _around(tokenizer)
    mask = first(tokenizer.mask_token_id, getattr(config, "mask_token_id", None))
    ends = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    # an encoder-decoder reads texts that begin with a word, where its tokenizer puts nothing before them
    bos = first(tokenizer.cls_token_id, tokenizer.bos_token_id, *(() if config.is_encoder_decoder else ends))
    if config.is_encoder_decoder and not before:
        bos = -1
    others = (number for number in sorted(ids.values()) if number != mask)
    pad = first(tokenizer.pad_token_id, getattr(config, "pad_token_id", None), *ends, *others)
    gap, fill, end = (next(virtual) for _ in range(3))
    mask, bos, pad = (next(virtual) if number < 0 else number for number in (mask, bos, pad))
    named = {pad, bos, mask}
    banned = {number for number in ids.values() if number < size} | ({*range(size)} - vocabulary)
    return Specials(
        pad=pad, bos=bos, mask=mask, gap=gap, fill=fill, end=end, banned=tuple(sorted(banned - named)), size=size,
        tail=tuple(number for number in after if number < size),
    )  # fmt: skip


def _around(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """What the tokenizer puts before a text and after it."""
    bare, whole = encode(tokenizer, "a"), tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"]
    starts = (i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare)
    place = next(starts, len(whole)) if bare else len(whole)
    return whole[:place], whole[place + len(bare) :]


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder or hub name, with user text as text. Runs no code that comes with it."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    # Beside a config.json of Qwen2, AutoTokenizer makes a Qwen2Tokenizer of ours and adds a token no model has
    # (transformers 5.23): a folder that says "this is tokenizer.json, nothing more" is taken at its word.
    stock = Path(path).is_dir() and get_tokenizer_config(path).get("tokenizer_class") == "TokenizersBackend"
    kind = PreTrainedTokenizerFast if stock else AutoTokenizer
    return from_pretrained(kind, path, split_special_tokens=True)


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the ids of a text and nothing else: no special token, no truncation.

    Raises:
        ValueError: For a lone surrogate, and for a tokenizer that fails on the text.
    """
    with panics_are_errors():
        return tokenizer(_checked(text), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]


def check_rows(ids: Iterable[int], tokenizer: "PreTrainedTokenizerBase", specials: Specials) -> None:
    """Raise ValueError, naming the token, where one of a text's ids is beyond the rows that the model has."""
    for number in ids:
        if 0 < specials.size <= number:
            raise ValueError(
                f"the text has the token {tokenizer.convert_ids_to_tokens(number)!r} of id {number}, and the model has "
                f"{specials.size} rows; call model.resize_token_embeddings(len(tokenizer)), or leave the token out"
            )


@contextmanager
def panics_are_errors() -> Iterator[None]:
    """A panic of the tokenizer's Rust code, as over a pattern that backtracks without end, is a ValueError of one line."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"the tokenizer fails on this text ({reason[:120]}); use another tokenizer") from None


def _checked(text: str) -> str:
    """The text itself; half a surrogate pair is no character and cannot be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise ValueError(
            f"lone surrogate {half} at character {error.start} of the text: decode the file as UTF-8, or drop it with "
            'text.encode("utf-8", "ignore").decode()'
        ) from None
    return text


def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Name -> id of everything the tokenizer itself marks as special, or uses in a role such as UNK."""
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    roles = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {**added, **roles}
