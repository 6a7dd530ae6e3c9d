"""What both pipelines of texts are: a model opened once, texts prepared before any is filled, batches, errors by text."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, Pipeline

from textdiff.checkpoint import DiffusionConfig
from textdiff.loading import whole
from textdiff.pipelines.opened import Opened
from textdiff.validation import check_integer, shown

CLASSES = tuple(map(whole, (AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForSeq2SeqLM)))


@dataclass(frozen=True)
class Item:
    """One input as given; in a class of its own, so that transformers does not take a list of parts for anything else."""

    value: Any


class TextPipeline(Pipeline):
    """A pipeline over texts. Subclasses say what one input is, and how inputs become prepared texts and results.

    `preprocess` raises ValueError for an input that cannot serve; `_forward` maps {"batch": prepared} to {"batch": results}.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    batch = 1
    """How many texts of a list go together unless batch_size says otherwise."""

    def __init__(self, *args: Any, diffusion_config: DiffusionConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._batch_size is not None:
            check_integer("batch_size", self._batch_size, least=1)
        self._open(diffusion_config)

    def _open(self, config: DiffusionConfig | None) -> None:
        self.opened = Opened.of(self.model, self.tokenizer, config)
        self.route, self.checkpoint = self.opened.route, self.opened.checkpoint

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: the model and the options. The rest is made of them again."""
        config = None if self.checkpoint is None else self.checkpoint.config
        made = ("opened", "route", "checkpoint", "tools")
        return {name: value for name, value in vars(self).items() if name not in made} | {"_config": config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        config = state.pop("_config")
        self.__dict__.update(state)
        self._open(config)

    @abstractmethod
    def is_input(self, inputs: Any) -> bool:
        """Whether `inputs` is one input, not several."""

    @abstractmethod
    def size(self, prepared: dict[str, Any]) -> int:
        """The tokens of a prepared text: those of like size share a batch."""

    def explain(self) -> str:
        """Return which way this model fills gaps, and why."""
        return self.route.reason

    def score(self, texts: str | Sequence[str], **options: Any) -> Any:
        """Return how likely texts are: for each {"nats", "error", "bits_per_byte", "tokens", "kind"}.

        Args:
            texts: A text, or a list of them, which gives a list.
            options: draws, window, seed; see `scoring.score`.
        """
        return self.opened.score(texts, **options)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write model and tokenizer to a folder that this pipeline, the command line and plain transformers open.

        A textdiff checkpoint with its card (`hub.save`). The folder holds no code and no path.
        """
        self.opened.save(save_directory, options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes to the hub (`hub.push`); return the repository's address."""
        return self.opened.push(repo_id, **options)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """See the class. A list, tuple, array or Series of texts gives a list of results, an iterator an iterator."""
        batch_size = options.pop("batch_size", None)
        given = self._batch_size if batch_size is None else batch_size
        if given is not None:
            check_integer("batch_size", given, least=1)
        if self.is_input(inputs):
            return super().__call__([Item(inputs)], batch_size=1, **options)[0]
        several = _several(inputs)
        if isinstance(several, list):
            if not several:
                return []
            return super().__call__([Item(value) for value in several], batch_size=given or self.batch, **options)
        return super().__call__((Item(value) for value in several), batch_size=given or 1, **options)

    def get_iterator(
        self, inputs: Any, num_workers: int, batch_size: int, preprocess_params: dict, forward_params: dict,
        postprocess_params: dict,
    ) -> Any:  # fmt: skip
        """Yield the result of each text, in order. All texts of a list are prepared before the first is filled."""
        options = dict(preprocess_params)
        returns = options.pop("on_error", "raise") == "return"

        def prepare(item: Item) -> Any:
            return self.preprocess(item.value, **options)

        def run(batch: list[Any]) -> list[Any]:
            done = self.forward({"batch": batch}, **forward_params)["batch"]
            return [self.postprocess(result, **postprocess_params) for result in done]

        watched = forward_params.get("streamer") is not None  # who watches sees them in their order
        size = (lambda prepared: 0) if watched else self.size
        if isinstance(inputs, list):
            yield from fill(inputs, prepare, run, size, batch_size, returns, total=len(inputs))
            return
        first, source = 0, iter(inputs)
        while chunk := list(islice(source, batch_size)):
            yield from fill(chunk, prepare, run, size, batch_size, returns, first=first)
            first += len(chunk)


def fill(
    items: Sequence[Any], prepare: Callable[[Any], Any], run: Callable[[list[Any]], list[Any]],
    size: Callable[[Any], int], batch_size: int, returns: bool, first: int = 0, total: int | None = None,
) -> Iterator[Any]:  # fmt: skip
    """Yield the result of each item, in order; one that fails costs no other.

    Args:
        items: What the user gave.
        prepare: What makes an item ready. It raises ValueError for one that cannot serve.
        run: The results of a batch of prepared items.
        size: By what prepared items are put into batches of like ones, since less of these is padding.
        batch_size: The most items of a batch.
        returns: Yield [{"error": reason}] in the place of an item that fails; else raise the error, with its number.
        first: The number of the first item.
        total: How many there are in all, None where that is not known.
    """
    results: list[Any] = [_prepared(item, prepare) for item in items]
    good = []
    for place, prepared in enumerate(results):
        if not isinstance(prepared, Exception):
            good.append(place)
        elif not returns:
            raise _named(prepared, first + place, total)
    good.sort(key=lambda place: size(results[place]))
    for begin in range(0, len(good), batch_size):
        places = good[begin : begin + batch_size]
        for place, result in zip(places, _attempt([results[place] for place in places], run), strict=True):
            if isinstance(result, Exception) and not returns:
                raise _named(result, first + place, total)
            results[place] = result
    for result in results:
        yield [{"error": str(result)}] if isinstance(result, Exception) else result


def _prepared(item: Any, prepare: Callable[[Any], Any]) -> Any:
    try:
        return prepare(item)
    except ValueError as error:
        return error


def _attempt(batch: list[Any], run: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """What each becomes, or its error; where a batch fails, each is tried alone, so that one loses none of the others."""
    try:
        return run(batch)
    except Exception as error:
        if len(batch) == 1:
            return [error]
    return [result for one in batch for result in _attempt([one], run)]


def _several(inputs: Any) -> "list[Any] | Iterable[Any]":
    """A list of inputs, or what is read one by one. ValueError for what is neither."""
    if isinstance(inputs, Mapping):
        column = next((name for name, value in inputs.items() if isinstance(value, str)), "text")
        raise ValueError(f"the input must be text, not a row of a data set; pass row[{column!r}]. Got {shown(inputs)}")
    if inputs is None or isinstance(inputs, str | bytes | int | float | set | frozenset):
        raise ValueError(f"the input must be a text, or a list of texts; got {shown(inputs)}")
    if callable(getattr(inputs, "iterrows", None)):
        raise ValueError('the input must be texts, not a table; pass one of its columns, such as table["text"]')
    listed = getattr(inputs, "tolist", None)  # arrays, Series and tensors of anything
    if callable(listed):
        several = listed()
        return several if isinstance(several, list) else [several]
    if isinstance(inputs, Sequence):
        return list(inputs)
    if isinstance(inputs, Iterable) or callable(getattr(inputs, "__getitem__", None)):
        return inputs
    raise ValueError(f"the input must be a text, or a list of texts; got {shown(inputs)}")


def _named(error: Exception, place: int, total: int | None) -> Exception:
    """The error with the number of its text, where there are several."""
    if total == 1:
        return error
    which = f"text {place + 1}" if total is None else f"text {place + 1} of {total}"
    if isinstance(error, ValueError):
        return ValueError(f"{which}: {error}")
    error.add_note(which)
    return error
