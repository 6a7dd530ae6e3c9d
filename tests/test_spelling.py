"""Scripts without spaces, models of one case, tokens that are bytes: what a tokenizer writes is what a reader would."""

import io
import re
from typing import Any

import pytest
import torch
from rich.console import Console
from stock import byte_tokenizer, fallback_tokenizer, unigram_tokenizer, wordpiece_tokenizer
from test_automata import accepts
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)

from textdiff.automata import compile_gap
from textdiff.constraints import Constraint, draw_run
from textdiff.spelling import SOFT, as_asked, check_tokenizer, folding, joined, lead_of, pieces, read_gap, read_text
from textdiff.streaming import BatchStreamer
from textdiff.tokenizer import encode

HEAD = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
HAN = sorted({*"我爱北京天安门上太阳升，。"})
LATIN = ["we", "say", "yes", "no", "##s", "the", "2024", ".", ",", "war", "cafe"]


def wordpiece(names: list[str], *, lowercase: bool = False) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordPiece({name: n for n, name in enumerate([*HEAD, *names])}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def filler(t: Any) -> Any:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(t), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                        max_position_embeddings=64, initializer_range=0.3)  # fmt: skip
    return pipeline("text-infilling", model=BertForMaskedLM(config).eval(), tokenizer=t)


@pytest.fixture(scope="module")
def chinese() -> PreTrainedTokenizerFast:
    return wordpiece([*HAN, *LATIN])


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["我", "爱", "北", "京"], "我爱北京"),
        (["北", "京", "，", "上"], "北京，上"),
        (["2024", "上"], "2024上"),
        (["上", "2024"], "上2024"),
        (["we", "say", "yes"], "we say yes"),
        (["我", "say", "yes", "##s", "上", "we"], "我say yess上we"),
    ],
)
def test_no_space_that_nobody_wrote(chinese: Any, tokens: list[str], text: str) -> None:
    ids = chinese.convert_tokens_to_ids(tokens)
    assert read_gap(chinese, ids, " ") == text
    machine = compile_gap(chinese, len(chinese), choices=[text], lead=" ")
    assert accepts(machine, tuple(ids)) and not accepts(machine, tuple(ids[:-1]))
    assert accepts(compile_gap(chinese, len(chinese), pattern=re.escape(text), lead=" "), tuple(ids))


def test_random_texts_have_spaces_between_words_alone(chinese: Any) -> None:
    """2,000 random strings of tokens: a space stands between two words of Latin letters, or digits, and nowhere else."""
    t, noise = chinese, torch.Generator().manual_seed(0)
    ids = torch.tensor([number for number, piece in enumerate(pieces(t, len(t))) if piece])
    for row in ids[torch.randint(len(ids), (2000, 6), generator=noise)].tolist():
        text = read_gap(t, row, " ")
        assert not re.search(r"[一-龥，。] | [一-龥，。]", text), text
        names = [name for name in t.convert_ids_to_tokens(row) if not name.startswith("##")]
        assert len(re.findall("[一-龥，。]", text)) == sum(name in HAN for name in names)


@pytest.mark.parametrize("asked", ["3", "2w", "2-4w", "北京|天安门", "/[天安门]{2}/", "must=北京", "/[^ ]{3}/"])
def test_every_kind_of_gap_in_chinese(chinese: Any, asked: str) -> None:
    fill = filler(chinese)
    for seed in range(6):
        gap = fill(f"我爱[GAP:{asked}]天安门。", seed=seed)[0]["gaps"][0]["text"]
        assert not re.search(r"[一-龥，。] | [一-龥，。]", gap), gap
        assert asked != "北京|天安门" or gap in ("北京", "天安门")
        assert asked != "/[天安门]{2}/" or re.fullmatch("[天安门]{2}", gap)
        assert asked != "must=北京" or "北京" in gap
    assert {one["filling"][0] for one in fill.rank("我爱[GAP]天安门。", ["北京", "上"])} == {"北京", "上"}


@pytest.mark.parametrize("prompt", ["", "我爱", "we say "])
def test_what_is_written_on_has_no_space_that_nobody_wrote(chinese: Any, prompt: str) -> None:
    """As a whole text, and as it is streamed. Control: the tokenizer's own decoder puts some."""
    write, found = pipeline("text-diffusion", model=filler(chinese).model, tokenizer=chinese), 0
    for seed in range(4):
        shown = io.StringIO()
        streamer = BatchStreamer(chinese, Console(file=shown), prompt=prompt)
        text = write(prompt, max_new_tokens=12, seed=seed, streamer=streamer)[0]["generated_text"]
        assert text.startswith(prompt) and not re.search(r"[一-龥，。] | [一-龥，。]", text), text
        assert text in shown.getvalue().split("\n")
        own = chinese.decode(chinese(text, add_special_tokens=False)["input_ids"])
        found += bool(re.search(r"[一-龥，。] | [一-龥，。]", own))
    assert found


def test_texts_are_read_as_decode_reads_them() -> None:
    """By every tokenizer, where no letters of such scripts are in them."""
    for make in (
        wordpiece_tokenizer,
        lambda: byte_tokenizer("gpt2"),
        lambda: unigram_tokenizer("t5"),
        fallback_tokenizer,
    ):
        t = make()
        for text in ("We go on.", "We go, and on", "we", "1787-09 union."):
            ids = t(text, add_special_tokens=False)["input_ids"]
            assert read_text(t, ids) == t.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False), (
                text
            )


def test_a_tokenizer_without_such_letters_is_as_before() -> None:
    t = wordpiece(LATIN)
    assert not any(piece and SOFT in piece for piece in pieces(t, len(t)))
    assert pieces(t, len(t))[t.convert_tokens_to_ids("we")] == b" we"


# ------------------------------------------------------------------------------------------------- one case


@pytest.fixture(scope="module")
def uncased() -> PreTrainedTokenizerFast:
    return wordpiece([*LATIN, "and", "dog"], lowercase=True)


def test_choices_and_strings_are_given_as_they_were_asked_for(uncased: Any) -> None:
    fill = filler(uncased)
    for seed in range(4):
        assert fill("We say [GAP:Yes|NO] and the dog.", seed=seed)[0]["gaps"][0]["text"] in ("Yes", "NO")
        assert fill("We say [GAP:Café|Cafe yes].", seed=seed)[0]["gaps"][0]["text"] in ("Café", "Cafe yes")
        assert "War" in fill("We say [GAP:must=War] and.", seed=seed)[0]["generated_text"]
        assert "War" in fill("We say [GAP] and.", must=["War"], seed=seed)[0]["generated_text"]
        assert "yes" not in fill("We say [GAP:1-4] and.", banned=["Yes"], seed=seed)[0]["gaps"][0]["text"]
    ranked = fill.rank("We say [GAP] and the dog.", ["Yes", "No"])
    assert {one["filling"][0] for one in ranked} == {"Yes", "No"}


def test_a_pattern_that_wants_capitals_is_told_so(uncased: Any) -> None:
    with pytest.raises(ValueError, match="knows lower case alone"):
        filler(uncased)("We say [GAP:/[A-Z]+/] and.")


def test_folding_is_the_tokenizer_s_own(uncased: Any) -> None:
    fold = folding(uncased)
    assert fold is not None and fold(
        "ÉTÉ Straße"
    ) == "ete straße" == uncased.backend_tokenizer.normalizer.normalize_str("ÉTÉ Straße")
    assert folding(wordpiece(LATIN)) is None and as_asked(wordpiece(LATIN), "yes", ("Yes",)) == "yes"


# ------------------------------------------------------------------------------------------------- at the door


def byt5() -> Any:
    torch.manual_seed(0)
    config = T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0,
                      pad_token_id=0, eos_token_id=1)  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def test_byt5_serves() -> None:
    t = ByT5Tokenizer()
    check_tokenizer(t)
    spelt = pieces(t, len(t))
    for text in ("We é 日本 go", " x", "🙂"):
        assert joined([spelt[i] or b"" for i in encode(t, text)]) == text
    assert lead_of(t, "We ") == " " and lead_of(t, "We") == ""
    fill = pipeline("text-infilling", model=byt5(), tokenizer=t)
    for seed in range(5):
        found = fill("We [GAP:2-6] on [GAP:1-2w], [GAP:yes|no].", seed=seed)[0]
        assert found["generated_text"].startswith("We ") and found["gaps"][2]["text"] in ("yes", "no")
        assert "\ufffd" not in found["generated_text"]
    assert len(fill.rank("We [GAP] on.", ["go", "é"])) == 2 and fill.score("We go é")["nats"] > 0


def unreadable() -> list[Any]:
    bpe = Tokenizer(models.BPE({"a": 0, "b</w>": 1}, []))
    bpe.decoder = decoders.BPEDecoder()
    nothing = Tokenizer(models.WordLevel({"[UNK]": 0, "[MASK]": 1}, unk_token="[UNK]"))
    return [
        (PreTrainedTokenizerFast(tokenizer_object=bpe), "decoder is a BPEDecoder"),
        (
            PreTrainedTokenizerFast(tokenizer_object=nothing, unk_token="[UNK]", mask_token="[MASK]"),
            "no token that is text",
        ),
    ]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("task", ["text-infilling", "text-diffusion"])
def test_a_tokenizer_that_cannot_serve_is_told_at_the_door(number: int, task: str) -> None:
    """Once, when the pipeline is made, with the remedy; not at each text."""
    t, message = unreadable()[number]
    with pytest.raises(ValueError, match=message) as raised:
        pipeline(task, model=byt5(), tokenizer=t)
    assert re.search("use a model|give the model's own", str(raised.value))


def test_a_greedy_draw_is_text_too(chinese: Any) -> None:
    machine = compile_gap(chinese, len(chinese), words=(2, 3), lead=" ")
    scores = torch.randn(3, len(chinese), generator=torch.Generator().manual_seed(0))
    ids = draw_run(Constraint(automaton=machine), scores, torch.full((3,), -1), torch.rand(3), greedy=True).tolist()
    assert read_gap(chinese, ids, " ")
