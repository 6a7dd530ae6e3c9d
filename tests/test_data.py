"""Data: sentences, windows, packing, order, loading."""

import json
import logging
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from stock import byte_tokenizer, unigram_tokenizer, wordpiece_tokenizer
from transformers import PreTrainedTokenizerFast

from textdiff.checkpoint import DiffusionConfig
from textdiff.data import Batches, DataConfig, cut, load_texts, pack, to_tokens, windows
from textdiff.keys import Key
from textdiff.reading import each, open_split
from textdiff.recipe import Recipe, TokenizerConfig
from textdiff.sentences import PIECE, learnable, pieces, sentences
from textdiff.tokenizer import prepare_tokenizer, specials, train_tokenizer
from textdiff.trainer import TrainerConfig

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
    with pytest.raises(
        ValueError, match="row 1 .* of column 'n' in .*train.jsonl .line 1. holds a number, not a text: 1"
    ):
        load_texts(folder, "train", text_column="n")
    monkeypatch.chdir(folder.parent)
    for path in ("/nowhere/at/all", "./typo", "set/typo", "typo.jsonl", str(folder / "*.csv"), "not a name"):
        with pytest.raises(ValueError, match="no (file|folder) .*: give a file"):
            load_texts(path, "train")


# ------------------------------------------------------------------------------------------- what cannot be read

GOOD = "".join(json.dumps({"text": f"We go on {number}."}) + "\n" for number in range(5))
CHAT = [{"role": "user", "content": "We go."}, {"role": "assistant", "content": "On."}]
BROKEN: dict[str, tuple[str | bytes, str]] = {
    "cut.jsonl": (
        GOOD + '{"text": "cut sho',
        "cut.jsonl, line 6: not JSON .Unterminated string.*mend or remove the line",
    ),
    "middle.jsonl": ('{"text": "a" "b"}\n' + GOOD, "middle.jsonl, line 1: not JSON .Expecting ',' delimiter"),
    "latin.jsonl": (
        GOOD.encode() + b'{"text": "caf\xe9"}\n',
        "latin.jsonl, line 6: not UTF-8 .* save the file as UTF-8",
    ),
    "binary.jsonl": (b"\x00\xff\xfe", "binary.jsonl, line 1: not UTF-8"),
    "half.jsonl": (GOOD + '{"text": "a\\ud800b"}\n', "half.jsonl, line 6: not JSON .half of a surrogate pair"),
    "empty.jsonl": ("", "empty.jsonl is empty"),
    "empty.csv": ("", "empty.csv is empty"),
    "document.json": ('[\n{"text": "a"},\n{"text": }\n]', "document.json, line 3: not JSON"),
    "row.csv": ("text,n\na,1\nb,2,3,4\n", "row.csv, line 3: 4 fields, and the header has 2; mend the line"),
    "quote.csv": ('text,n\n"a,1\nb,2\n', "quote.csv, line 3: not CSV .unexpected end of data"),
    "latin.csv": ("text\nb\ncaf\xe9\n".encode("latin-1"), "latin.csv, line 3: not UTF-8"),
    "latin.txt": ("a\ncaf\xe9\n".encode("latin-1"), "latin.txt, line 2: not UTF-8"),
    "none.parquet": ("not parquet", "none.parquet cannot be read: Parquet magic bytes not found"),
    "unknown.xml": ("<a/>", "unknown.xml is a file of an unknown kind; give one of .txt, .json"),
    "a::b.jsonl": (GOOD, "a name with '::' cannot be read; rename it"),
    "null.jsonl": (
        GOOD + '{"text": null}\n',
        "row 6 .* of column 'text' in .*null.jsonl .line 6. holds nothing.*filter",
    ),
    "missing.jsonl": (GOOD + '{"txt": "a"}\n', "row 6 .* holds nothing"),
    "nulls.jsonl": ('{"text": null}\n' * 3, "row 1 .* holds nothing"),
    "chat.jsonl": (
        json.dumps({"text": CHAT}) + "\n",
        "row 1 .* holds a chat, not a text: .*write each chat as one text first",
    ),
    "list.jsonl": (json.dumps({"text": ["a", "b"]}) + "\n", "row 1 .* holds a list, not a text: .*join its parts"),
    "number.jsonl": (
        '{"text": 7}\n',
        "row 1 .* holds a number, not a text: 7; name a column of texts by data.text_column",
    ),
    "mapping.jsonl": ('{"text": {"a": "b"}}\n', "row 1 .* holds a mapping"),
    "flag.jsonl": ('{"text": true}\n', "row 1 .* holds a flag"),
    "mixed.jsonl": (GOOD + '{"text": 5}\n', "row 6 .* holds a number, not a text: 5"),
    "short.csv": ("n,text\n1,a\n2\n", "row 2 .* of column 'text' in .*short.csv .line 3. holds nothing"),
    "string.jsonl": (GOOD + "[1, 2]\n", "string.jsonl, line 6: .1, 2. is no row; write an object with the key 'text'"),
    "twice.jsonl": (
        GOOD + '{"text": "a", "text": "b"}\n',
        "twice.jsonl, line 6: the key 'text' stands twice in one object",
    ),
    "column.jsonl": (json.dumps({"body": "a"}) + "\n", "no column 'text' in .*: set text_column to one of body"),
}


LIKE = [
    "2020-01-01",
    "00010.50",
    "NA",
    "null",
    "",
    "True",
    "1e5",
    "2020-01-01 00:00:00",
    "[1]",
    '{"a": 1}',
    "a\nb",
    'say "on"',
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_a_text_is_what_stands_in_the_file(kind: str, streaming: bool, tmp_path: Path) -> None:
    """Whatever it looks like, in whichever file. Control: by `datasets` alone some come back as others, or not at all."""
    for name, texts in {"a": ["We go on."], "b": LIKE}.items():
        table = datasets.Dataset.from_dict({"n": list(range(len(texts))), "text": texts})
        file = tmp_path / f"{name}.{kind}"
        table.to_csv(file) if kind == "csv" else table.to_json(file, lines=kind == "jsonl")
    found = [row["text"] for row in load_texts(tmp_path, "train", streaming=streaming)]
    assert found == ["We go on.", *LIKE]
    assert [row["text"] for row in load_texts(tmp_path / f"b.{kind}", "train", streaming=streaming)] == LIKE
    dates = tmp_path / "dates"
    dates.mkdir()
    rows = [{"text": "2020-01-01"}] * 3
    content = {
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows),
        "csv": "text\n00010.50\n00010.50\n00010.50\n",
    }
    (dates / f"b.{kind}").write_text(content[kind])
    expected = [row["text"] for row in rows] if kind != "csv" else ["00010.50"] * 3
    own = load_texts(dates / f"b.{kind}", "train", streaming=streaming)
    assert [row["text"] for row in own] == expected
    other = datasets.load_dataset(kind.removesuffix("l"), data_files=str(dates / f"b.{kind}"), split="train")
    assert list(other["text"]) != expected


def test_parts_of_splits_and_changed_files(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f"We go {number}."}) + "\n" for number in range(10)))
    texts = [f"We go {number}." for number in range(10)]
    for split, expected in {
        "train[2:5]": texts[2:5],
        "train[90%:]": texts[9:],
        "train[:1]+train[8:]": texts[:1] + texts[8:],
    }.items():
        assert load_texts(file, split)["text"][:] == expected
        with pytest.raises(ValueError, match="a stream has no parts; name the split 'train', or leave streaming out"):
            load_texts(file, split, streaming=True)
    file.write_text(json.dumps({"text": "On."}))
    assert load_texts(file, "train")["text"][:] == ["On."]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_one_line(name: str, streaming: bool, folder: Path) -> None:
    """With the file, the line or row, and the column; nothing else is written, and no traceback."""
    content, named = BROKEN[name]
    file = folder.parent / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign]
    logging.getLogger("datasets").addHandler(handler)
    try:
        with pytest.raises(ValueError, match=named) as caught:
            list(each(load_texts(file, "train", streaming=streaming), str(file)))
    finally:
        logging.getLogger("datasets").removeHandler(handler)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not [record for record in logged if record.levelno >= logging.ERROR]


def test_bytes_and_other_columns(folder: Path) -> None:
    datasets.Dataset.from_dict({"text": [b"a", b"b"]}).to_parquet(folder.parent / "bytes.parquet")
    with pytest.raises(ValueError, match="row 1 .* holds bytes, not a text: b'a'; decode them first"):
        load_texts(folder.parent / "bytes.parquet", "train")
    table = datasets.Dataset.from_dict({"text": ["a", "b"]}).cast_column("text", datasets.Value("large_string"))
    table.to_parquet(folder.parent / "large.parquet")
    assert list(load_texts(folder.parent / "large.parquet", "train")) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    "name", ["texts [v2]", "q?", "st*r", "c{1,2}", "h#1", "p%20", "\u00fc \u4e2d", "-x", "a b", "x[!a]y"]
)
def test_names_that_look_like_patterns(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or a folder that is there is found by its name, whatever is in it."""
    monkeypatch.chdir(folder.parent)
    Path(f"{name}.jsonl").write_text(GOOD)
    Path(name).mkdir()
    (Path(name) / "train.jsonl").write_text(GOOD)
    for path in (f"{name}.jsonl", name, str(Path(name).resolve())):
        assert len(load_texts(path, "train")) == 5, path


def test_places_without_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "void").mkdir()
    (folder.parent / "odd").mkdir()
    (folder.parent / "odd" / "x.xyz").write_text("a")
    (folder.parent / "d.jsonl").mkdir()
    for path, named in {
        "void": "void has no data files; give one with .txt",
        "odd": "odd has no data files",
        "d.jsonl": "d.jsonl has no data files",
        "*.jsonl": r"no file .*\*.jsonl: give a file",
        "none[0-9].csv": "no file .*none",
    }.items():
        with pytest.raises(ValueError, match=named) as caught:
            load_texts(folder.parent / path, "train")
        assert "\n" not in str(caught.value)


# what lies in a folder -> the file that would be left out, or how many texts are read
MIXED: dict[str, tuple[tuple[str, ...], str | int]] = {
    "formats": (("a.jsonl", "b.csv"), "b.csv"),
    "text beside rows": (("a.jsonl", "sub/b.txt"), "sub/b.txt"),
    "packed": (("a.jsonl", "b.xyz.gz"), "b.xyz.gz"),
    "unknown": (("a.txt", "b.md"), "b.md"),
    "not of a split": (("train.jsonl", "more.jsonl"), "more.jsonl"),
    "in folders": (("a.jsonl", "sub/b.jsonl", "sub/deep/c.jsonl"), 15),
    "papers": (("a.jsonl", "README.md", "LICENSE-MINE.txt", "sub/notice", "make.py", "c.png", ".x.csv", ".g/a.csv"), 5),
    "chosen": (("a.jsonl", "b.csv", "README.md: a"), 5),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["many", "many [v2]"])
@pytest.mark.parametrize("case", MIXED)
def test_no_file_is_left_out_without_a_word(case: str, name: str, streaming: bool, folder: Path) -> None:
    """In a folder, also one whose name looks like a pattern, and by a pattern that names no ending."""
    files, expected = MIXED[case]
    place = folder.parent / name
    for file in files:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text({".jsonl": GOOD, ".csv": "text\na\nb\n"}.get(Path(file).suffix, "We go.\n"))
    if case == "chosen":
        (place / files[-1]).rename(place / "README.md")
        (place / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.jsonl\n---\n")
    patterns = [] if case in ("not of a split", "chosen") or "[" in name else [f"{place}/**"]
    for path in [str(place)] * (case != "chosen" or "[" not in name) + patterns:
        if isinstance(expected, int):
            assert len(list(load_texts(path, "train", streaming=streaming))) == expected, path
            continue
        with pytest.raises(ValueError, match=f"{re.escape(f'{place}/{expected}')} would not be read") as caught:
            load_texts(path, "train", streaming=streaming)
        assert "\n" not in str(caught.value)


def test_patterns_without_an_ending(folder: Path) -> None:
    """Files of the folder alone, of all below it, and of a beginning; two endings of one format are one."""
    (folder / "sub").mkdir()
    (folder / "sub" / "c.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for pattern, count in {"*": 4, "**": 6, "tr*": 2, "*/c*": 2, "**/*.json*": 6, "[st]*/*": 2}.items():
        assert len(load_texts(folder / pattern, "train")) == count, pattern
    (folder / "x.png").write_text("")
    for pattern in ("nothing*", "x.*", "su*"):
        with pytest.raises(ValueError, match=r"no file .* that can be read; give one of \.txt"):
            load_texts(folder / pattern, "train")


def test_a_configuration_is_not_ignored(folder: Path) -> None:
    for path in (folder / "train.jsonl", folder / "*.jsonl", folder / "*"):
        with pytest.raises(ValueError, match="data.config 'x' is of a hub data set or a folder, .*; leave it out"):
            load_texts(path, "train", config="x")
    with pytest.raises(ValueError, match="BuilderConfig 'x' not found"):
        load_texts(folder, "train", config="x")


def test_the_log_is_silent_while_anything_is_read() -> None:
    """Whoever ends first; and it is as it was when the last has ended, also where a reader stopped early."""
    log = logging.getLogger("datasets")
    before = log.level
    first, second = each([1, 2], "a"), each([1, 2], "b")
    assert next(first) == next(second) == 1 and log.level == logging.CRITICAL
    assert list(first) == [2] and log.level == logging.CRITICAL
    second.close()
    third = next(each([1], "c"))
    assert third == 1 and log.level == before


@pytest.mark.parametrize("place", ["/proc/x", "{file}/x", "{file}"])
def test_a_cache_that_cannot_be_written(place: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not told as a missing file."""
    (folder.parent / "file").write_text("a")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place.format(file=folder.parent / "file"))
    with pytest.raises(ValueError, match=r"the cache of data sets \(HF_HOME\) .* cannot be"):
        load_texts(folder, "train")


def test_a_stream_that_breaks_off_is_told_when_it_does(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = folder.parent / "long.jsonl"
    file.write_text(GOOD * 3 + '{"text": null}\n')
    rows = windows(load_texts(file, "train", streaming=True), tokenizer, context=16, shortest=4)
    with pytest.raises(ValueError, match="row 16 .* holds nothing"):
        list(each(rows, str(file)))


# -------------------------------------------------------------------------------------------------------------- long texts


@pytest.mark.parametrize("unit", ["ACGT", "\u0915\u093e ", "\u0e01\u0e32", "f(x);", "\n", " ", "a" * 5000 + " "])
def test_a_text_without_an_end_takes_linear_steps(unit: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Counted, not timed: what is encoded, and what is copied into windows, is no more than twice the text."""
    text, encoded = unit * (100_000 // len(unit)), 0

    class Counting:
        def __call__(self, text: str, **options: object) -> object:
            nonlocal encoded
            encoded += len(text)
            assert len(text) <= PIECE
            return tokenizer(text, **options)

        def __len__(self) -> int:
            return len(tokenizer)

        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer, name)

    rows = cut(text, Counting(), context=64, shortest=8, key=key())  # type: ignore[arg-type]
    assert encoded <= 2.2 * len(text) and all(2 <= len(row) <= 64 for row in rows)
    assert (
        tokenizer.decode([token for row in rows for token in row[1:]]).replace(" ", "").strip()
        == text.replace(" ", "").strip()
    )


def test_pieces_join_to_the_text() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(500):
        text = "".join("ab  .\n\u00e9"[i] for i in torch.randint(7, (60,), generator=draw))
        assert "".join(pieces(text, 7)) == text and all(0 < len(piece) <= 7 for piece in pieces(text, 7))
    assert list(pieces("abcd efgh ijk", 6)) == ["abcd", " efgh", " ijk"] and list(pieces("abcdefgh", 4)) == [
        "abcd",
        "efgh",
    ]


def test_learning_a_tokenizer_from_one_long_word() -> None:
    """It gets no word of more than 2,000 characters, from which learning would take quadratic time."""
    made = Recipe(data=DataConfig("unused"))
    words: list[str] = []

    def learn(texts: Iterator[str], vocab: int, lengths: int) -> None:
        words.extend(texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("textdiff.recipe.train_tokenizer", learn)
        made.make_tokenizer([{"text": "ACGT" * 5000}, {"text": "We go on. Now."}])
    assert max(map(len, words)) <= 2000 and "".join(words) == "ACGT" * 5000 + "We go on. Now."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("textdiff.sentences.WORDS", 50_000)
        many = ["".join(learnable([part] * 3)) for part in ("ACGT" * 5_000, "AC GT " * 5_000)]
    assert [len(found) for found in many] == [50_000, 90_000]


# -------------------------------------------------------------------------------------------------------------- held out


def run_on(path: Path, **options: object) -> Recipe:
    return Recipe(
        data=DataConfig(str(path), context=16, shortest=4, **options),
        tokenizer=TokenizerConfig(vocab=340),
        trainer=TrainerConfig(out=str(path.parent / "run")),
    )


def texts_of(count: int) -> list[str]:
    """So many different texts, and after each third one a copy of it."""
    made = [f"{speech(number, 3)} Number {number}." for number in range(count)]
    return [text for number, text in enumerate(made) for text in [text] * (2 if number % 3 == 0 else 1)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("count", [1, 4, 60])
def test_what_is_held_out_is_never_learned_from(count: int, streaming: bool, folder: Path, capsys) -> None:
    """Of few texts windows, of many whole texts, copies included; said with the option that sets it."""
    file = folder.parent / "one.jsonl"
    texts = texts_of(count) if count > 1 else [speech(9, 60)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = run_on(file, streaming=streaming).prepare()
    said = capsys.readouterr().out
    assert (
        "has no split 'validation'" in said and "held out" in said and "--data.validation-split names a split" in said
    )
    learned, held = ([tuple(row["ids"]) for row in rows] for rows in (data.rows, data.held))
    assert held and learned and (streaming and count < 60 or not set(held) & set(learned))
    assert 0.01 < len(held) / (len(learned) + len(held)) < (0.4 if count == 4 else 0.2)
    if count == 60:
        whole = ["".join(data.tokenizer.decode(row[1:]) for row in rows) for rows in (learned, held)]
        numbers = [set(re.findall(r"Number ?(\d+)\.", text)) for text in whole]
        assert numbers[1] and not numbers[0] & numbers[1] and len(numbers[0] | numbers[1]) > 55
    again = run_on(file, streaming=streaming).prepare()
    assert [tuple(row["ids"]) for row in again.held] == held and [tuple(row["ids"]) for row in again.rows] == learned


def test_a_split_that_is_named_must_be_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: nothing is tokenized before. So must there be a split to measure on where all rows are alike."""
    made = run_on(folder / "train.jsonl", validation_split="validation")
    monkeypatch.setattr(Recipe, "make_tokenizer", lambda *args: pytest.fail("prepared"))
    with pytest.raises(ValueError, match="no split 'validation' in .*: it has train"):
        made.prepare()
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder.parent / "cache")
    (folder.parent / "alike.jsonl").write_text('{"text": "We go on."}\n' * 30)
    for streaming in (False, True):
        with pytest.raises(ValueError, match="too little text to hold some out; name one by --data.validation-split"):
            run_on(folder.parent / "alike.jsonl", streaming=streaming).prepare()
    assert run_on(folder.parent / "alike.jsonl", validation_split="train").prepare().held is not None


@pytest.mark.parametrize(("process", "denoiser", "count"), [
    ("masking", "parallel", 0), ("replacement", "parallel", 0), ("encoder", "parallel", 0), ("deletion", "parallel", 17),
    ("edit", "parallel", 17), ("2*masking+deletion", "parallel", 17), ("masking", "autoregressive", 17),
    ("deletion", "seq2seq", 17),
])  # fmt: skip
def test_tokens_for_lengths_are_for_those_who_say_them(process: str, denoiser: str, count: int, folder: Path) -> None:
    made = run_on(folder / "train.jsonl")
    made.diffusion = DiffusionConfig(process=process, denoiser=denoiser)
    assert made.lengths == count
    tokenizer = made.make_tokenizer([{"text": "We go on."}])
    assert len(specials(tokenizer).lengths) == count


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: object) -> None:
        raise ConnectionError("Couldn't reach 'someone/something' on the Hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match="cannot load 'someone/something': .*Couldn't reach[^\n]*$"):
        load_texts("someone/something", "train")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["text,title", "The sea.,Z,", "The man.,Y,"], "line 2 has 3 fields and the header 2"),
        (["text,b", "1,The sea.,Z"], "line 2 has 3 fields and the header 2"),
        (["text,text", "The sea.,Z"], "has two columns 'text'"),
    ],
)
def test_a_table_whose_columns_would_be_read_for_others(tmp_path: Path, lines: list[str], message: str) -> None:
    """As a file, in a folder, and by a pattern."""
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    for name in ("a.csv", "", "*.csv"):
        with pytest.raises(ValueError, match=message):
            open_split(str(tmp_path / name) if name else str(tmp_path), "train", None, False)


# ------------------------------------------------------------------------------------------- what cannot be spelled


@pytest.mark.parametrize("make", [wordpiece_tokenizer, lambda: unigram_tokenizer("t5")], ids=["WordPiece", "Unigram"])
@pytest.mark.parametrize("streaming", [False, True])
def test_what_a_tokenizer_cannot_spell_is_told_and_not_learned(make: Any, streaming: bool, caplog: Any) -> None:
    """No model writes unknown tokens, so that the loss of such a window would be infinite."""
    tokenizer = prepare_tokenizer(make(), 4)
    rows = datasets.Dataset.from_dict({"text": ["We go on and on.", "We go \u0416 on and on.", "We go on and on."]})
    given = rows.to_iterable_dataset() if streaming else rows
    with caplog.at_level("WARNING", "textdiff.data"):
        found = list(windows(given, tokenizer, context=32, shortest=4, where="mine"))
    assert len(found) == 2 and [row["index"] for row in found] == [0, 1]
    assert all(tokenizer.unk_token_id not in row["ids"] for row in found)
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"windows of mine {'with' if streaming else 'hold'} text that the tokenizer cannot spell" in said
    assert ("1 of 3 windows" in said) != streaming and "left out" in said
    unk = tokenizer.unk_token_id
    assert unk in specials(tokenizer).banned  # the reason: its probability is 0
    if not streaming:
        with pytest.raises(
            ValueError, match="2 of 2 windows of mine hold text that the tokenizer cannot spell .*; use a tok"
        ):
            windows(["\u0416 and on.", "On \u0416."], tokenizer, context=32, shortest=4, where="mine")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_text_begins_with_what_may_be_the_unknown_token(streaming: bool) -> None:
    """GPT-2's <|endoftext|> is BOS, EOS and the unknown token: no text has it, every window begins with it."""
    tokenizer = prepare_tokenizer(byte_tokenizer("gpt2"), 4)
    assert tokenizer.unk_token_id == specials(tokenizer).bos
    rows = datasets.Dataset.from_dict({"text": ["We go on and on.", "On we go Ж."]})
    given = rows.to_iterable_dataset() if streaming else rows
    found = [row["ids"] for row in windows(given, tokenizer, context=32, shortest=4)]
    assert [tokenizer.decode(ids[1:]) for ids in found] == rows["text"][:]
