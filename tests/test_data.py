"""Data: sentences, windows, packing, order, loading."""

import json
from itertools import islice
from pathlib import Path

import datasets
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from textdiff.data import Batches, cut, load_texts, pack, sentences, to_tokens, windows
from textdiff.keys import Key
from textdiff.tokenizer import specials, train_tokenizer

WORDS = "we the people of a strong union go on with work and hope for peace in every town".split()


def speech(seed: int, count: int) -> str:
    """`count` sentences of 3 to 24 words."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 25, (count,), generator=draw).tolist()
    words = [[WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=draw)] for n in lengths]
    return " ".join(" ".join(line).capitalize() + "." for line in words)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([speech(0, 50)], vocab_size=400)


def key(number: int = 0) -> Key:
    return Key.of(7, torch.tensor([number]))


# ------------------------------------------------------------------------------------------------------------ sentences


def test_sentences() -> None:
    text = 'Mr. Smith of the U.S. Army, J. Edgar said: "It is No. 5." Did he? Yes... he did. No.'
    text += " We go!\n\nA title\n\nEnd. "
    expected = ['Mr. Smith of the U.S. Army, J. Edgar said: "It is No. 5."', " Did he?", " Yes... he did.", " No."]
    assert sentences(text) == [*expected, " We go!", "\n\nA title", "\n\nEnd. "]
    assert sentences("你好。再见！") == ["你好。", "再见！"]
    assert sentences("") == [] and sentences(" \n") == [" \n"]


def test_sentences_join_to_the_text_in_linear_time() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(2000):
        text = "".join("aB. .!?\n\"')。5…"[i] for i in torch.randint(14, (20,), generator=draw))
        assert "".join(sentences(text)) == text and all(sentences(text))
    for piece in (".", ". ", "\n", ' ."', "。", "U."):  # quadratic time would take minutes
        assert "".join(sentences(piece * 50_000)) == piece * 50_000


# -------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("text", [speech(1, 200), "no end " * 300, "One. " * 200, "é。" * 100, "  \n Hi. \n\n You.  "])
def test_every_token_is_in_exactly_one_window(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    bos = specials(tokenizer).bos
    cuts = cut(text, tokenizer, context=32, shortest=8, key=key())
    assert all(row[0] == bos and bos not in row[1:] and 2 <= len(row) <= 32 for row in cuts)
    assert all(len(row) >= 8 for row in cuts[:-1])
    # white space may be missing where a window begins, and only there
    position = 0
    for row in cuts:
        piece = tokenizer.decode(row[1:]).encode()
        rest = text.encode()[position:]
        position += len(rest) - len(rest.lstrip()) if not rest.startswith(piece) else 0
        assert text.encode()[position:].startswith(piece)
        position += len(piece)
    assert position == len(text.encode())


def test_a_long_sentence_is_cut_losslessly(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "é漢" * 100
    cuts = cut(text, tokenizer, context=16, shortest=4, key=key())
    assert tokenizer.decode([token for row in cuts for token in row[1:]]) == text


def test_windows_begin_and_end_at_sentences_where_they_can(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [tokenizer.decode(row[1:]) for row in cut("We go on. " * 300, tokenizer, context=64, shortest=12, key=key())]
    assert all(row.startswith("We go on.") and row.rstrip().endswith("on.") for row in rows)


def test_empty_texts_and_bad_sizes(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (
        cut("", tokenizer, context=8, shortest=4, key=key())
        == cut(" \n ", tokenizer, context=8, shortest=4, key=key())
        == []
    )
    with pytest.raises(ValueError, match="shortest=9, context=8"):
        cut("a", tokenizer, context=8, shortest=9, key=key())


def correlation_of_gap_and_visible(sizes: torch.Tensor) -> float:
    """Hide 1-20 tokens in each window; how well do the tokens that stay tell how many are gone?"""
    gaps = 1 + (Key.of(1, len(sizes)).uniform(1)[:, 0] * 20).long()
    return float(torch.corrcoef(torch.stack([gaps.double(), (sizes - gaps).double()]))[0, 1])


def test_total_length_carries_no_information(tokenizer: PreTrainedTokenizerFast) -> None:
    # Gaps have spread 5.8; with independent lengths of spread S the correlation is -5.8 / sqrt(S^2 + 33), never 0: here
    # S = 29 gives -0.19, equal lengths give -1. n = 1308 windows: standard error 0.028, so the bound is 4 errors away,
    # a false alarm in 1 of 16,000 seeds, and the seed is fixed. (At context 64 the corpus has S = 10.5: -0.48.)
    rows = cut(speech(3, 6000), tokenizer, context=128, shortest=24, key=key())
    sizes = torch.tensor([len(row) for row in rows])
    assert len(sizes) > 1000
    assert abs(correlation_of_gap_and_visible(sizes)) < 0.3
    assert correlation_of_gap_and_visible(torch.full_like(sizes, 128)) < -0.999, "the negative control"
    # The total itself tells nothing of the gap: 4 standard errors, two-sided.
    gaps = 1 + (Key.of(1, len(sizes)).uniform(1)[:, 0] * 20).long()
    assert abs(float(torch.corrcoef(torch.stack([gaps.double(), sizes.double()]))[0, 1])) < 4 / len(sizes) ** 0.5


def test_windows_of_a_data_set(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [speech(4, 30), "", speech(5, 30)]
    settings = {"context": 32, "shortest": 8}
    rows = windows(texts, tokenizer, **settings, seed=3)
    expected = [cut(t, tokenizer, **settings, key=Key.of(3, torch.tensor([i]))) for i, t in enumerate(texts)]
    assert rows["ids"][:] == sum(expected, []) and rows["index"][:] == list(range(len(rows)))
    stream = datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset()
    assert list(windows(stream, tokenizer, **settings, seed=3)) == list(rows)
    assert windows(texts, tokenizer, **settings, seed=4)["ids"][:] != rows["ids"][:]
    with pytest.raises(ValueError, match=r"row 2 \(the first is 1\) of column 'text' in here holds nothing.*filter"):
        windows(["a", None], tokenizer, **settings, where="here")


# -------------------------------------------------------------------------------------------------------------- batches


def test_packing_loses_nothing_and_never_exceeds() -> None:
    sizes = (2 + Key.of(0, 500).uniform(1)[:, 0] * 62).long().tolist()
    rows = [[number] * size for number, size in enumerate(sizes)]
    packed = pack(rows, 64)
    assert all(sum(map(len, row)) <= 64 for row in packed)
    assert sorted(window for row in packed for window in row) == rows
    assert [row[0][0] for row in packed] == sorted(row[0][0] for row in packed)
    assert len(packed) < 1.15 * sum(sizes) / 64
    with pytest.raises(ValueError, match="65 tokens does not fit context=64"):
        pack([[0] * 65], 64)


def test_to_tokens() -> None:
    tokens = to_tokens([[[1, 5], [1, 6, 7]], [[1, 8, 9]]], pad=0)
    assert tokens.ids.tolist() == [[1, 5, 1, 6, 7], [1, 8, 9, 0, 0]]
    assert tokens.doc.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, -1, -1]]
    assert tokens.fixed.tolist() == [[True, False, True, False, False], [True, False, False, False, False]]
    assert not tokens.sealed.any() and tokens.packed
    assert to_tokens([[1, 8, 9], [1]], pad=0).doc.tolist() == [[0, 0, 0], [0, -1, -1]]
    for rows in ([[]], [[[1], []]]):
        with pytest.raises(ValueError, match="empty row or document"):
            to_tokens(rows, pad=0)


def test_batches_visit_each_sample_once_per_epoch() -> None:
    order = sum(islice(Batches(10, 4, seed=1), 25), [])
    epochs = [order[i : i + 10] for i in range(0, 100, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 10 and epochs[0] != list(range(10))
    assert sorted(sum(islice(Batches(3, 9, seed=1), 1), [])) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert order != sum(islice(Batches(10, 4, seed=2), 25), [])


def test_batches_from_step_k_and_over_ranks() -> None:
    whole = list(islice(Batches(10, 4, seed=1), 12))
    assert list(islice(Batches(10, 4, seed=1, start=7), 5)) == whole[7:]
    ranks = [islice(Batches(10, 4, seed=1, rank=rank, world=2), 12) for rank in range(2)]
    shares = list(zip(*ranks, strict=True))
    assert [sorted(a + b) for a, b in shares] == [sorted(batch) for batch in whole]
    assert all(len(a) == len(b) for a, b in shares)
    loader = torch.utils.data.DataLoader(list(range(10)), batch_sampler=Batches(10, 4, seed=1, start=2))
    assert next(iter(loader)).tolist() == whole[2]
    for bad in ({"world": 3}, {"rank": 2, "world": 2}):
        with pytest.raises(ValueError, match="multiple of world"):
            Batches(10, 4, seed=1, **bad)


def test_batches_by_length_are_even_and_complete() -> None:
    """Dealt out by length, little is padding, and still every sample comes exactly once per epoch."""
    lengths = [1 + (37 * number) % 64 for number in range(256)]
    dealt = list(islice(Batches(256, 8, seed=0, lengths=lengths), 32))  # one epoch, two pools of 16 steps
    assert sorted(number for batch in dealt for number in batch) == list(range(256))

    def spread(batches: list[list[int]]) -> int:
        return sum(max(lengths[n] for n in batch) - min(lengths[n] for n in batch) for batch in batches)

    assert spread(dealt) < 0.2 * spread(list(islice(Batches(256, 8, seed=0), 32)))
    assert [batch[0] for batch in dealt] != sorted((batch[0] for batch in dealt), key=lengths.__getitem__)
    assert list(islice(Batches(256, 8, seed=0, start=20, lengths=lengths), 12)) == dealt[20:]


# -------------------------------------------------------------------------------------------------------------- loading

ROWS = [{"text": "One.\nTwo.", "n": 1}, {"text": "Three, four.", "n": 2}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "txt", "folder", "folder of txt", "glob"])
def test_loading(suffix: str, streaming: bool, folder: Path) -> None:
    table, path = datasets.Dataset.from_list(ROWS), folder.parent / f"file.{suffix}"
    expected = [row["text"] for row in ROWS]
    match suffix:
        case "json" | "jsonl":
            table.to_json(path)
        case "csv" | "parquet":
            getattr(table, f"to_{suffix}")(path)
        case "folder":
            path = folder
        case _:
            many = folder.parent / "many"
            many.mkdir()
            for name, text in zip("ab", expected, strict=True):
                (many / f"{name}.txt").write_text(text)
            path = {"txt": many / "a.txt", "glob": many / "*.txt"}.get(suffix, many)
            expected = expected[:1] if suffix == "txt" else expected
    texts = load_texts(path, "train", streaming=streaming)
    assert list(texts) == [{"text": text} for text in expected]


def test_loading_the_embedded_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    splits = datasets.load_dataset(str(root / "data/sotu"), cache_dir=str(tmp_path))
    assert {name: rows.num_rows for name, rows in splits.items()} == {"train": 62, "validation": 8, "test": 8}
    assert splits["train"].column_names == ["year", "president", "text"]
    assert max(splits["train"]["year"]) == 2005 and set(splits["validation"]["year"]) == set(range(2006, 2014))


def test_loading_errors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no column 'body' in .*: set text_column to one of text, n"):
        load_texts(folder, "train", text_column="body")
    with pytest.raises(ValueError, match="no column 'body'"):
        load_texts(folder, "train", text_column="body", streaming=True)
    with pytest.raises(ValueError, match="no split 'validation' in .*: it has train, test"):
        load_texts(folder, "validation")
    with pytest.raises(ValueError, match="no split 'test' in .*: it has train"):
        load_texts(folder / "train.jsonl", "test", streaming=True)
    assert list(load_texts(folder, "train[:1]")) == [{"text": ROWS[0]["text"]}]
    with pytest.raises(ValueError, match="row 1 .* of column 'n' in split 'train' of .* holds a number, not a text: 1"):
        load_texts(folder, "train", text_column="n")
    monkeypatch.chdir(folder.parent)
    for path in ("/nowhere/at/all", "./typo", "set/typo", "typo.jsonl", str(folder / "*.csv"), "not a name"):
        with pytest.raises(ValueError, match="no (file|folder) .*: give a file"):
            load_texts(path, "train")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: object) -> None:
        raise ConnectionError("Couldn't reach 'someone/something' on the Hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match="cannot load 'someone/something': .*Couldn't reach[^\n]*$"):
        load_texts("someone/something", "train")
