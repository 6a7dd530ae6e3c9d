"""Tokenizers: user text is text and comes back exactly, whatever it contains."""

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast, Qwen2Config

from textdiff.tokenizer import encode, load_tokenizer, prepare_tokenizer, specials, train_tokenizer

TEXTS = [
    "The state of the Union is strong. We will go on.",
    "Don't ask me; ask them: 3.5 percent, U.S. and Ünïcode.",
] * 5
LITERALS = "[PAD] [BOS] [MASK] [GAP][FILL] [END] <|0|><|3|> [MASK"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=320, lengths=3)


def decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def wordpiece() -> PreTrainedTokenizerFast:
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "the", "union", "[", "]", "mask", "gap", "."]
    model = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece()
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "cls", "sep", "pad", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=model, **roles)


def test_round_trip_of_random_unicode(tokenizer: PreTrainedTokenizerFast) -> None:
    draw = random.Random(0)
    ranges = [(0, 0x7F), (0, 0x2FF), (0x300, 0x36F), (0x2000, 0x206F), (0x4E00, 0x9FFF), (0xE000, 0x10FFFF)]
    special_ids = set(specials(tokenizer).not_text)
    for _ in range(2000):
        text = "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(0, 30)))
        text = text[:15] + draw.choice(["", "[MASK]", " [GAP] ", "<|2|>"]) + text[15:]
        ids = encode(tokenizer, text)
        assert decode(tokenizer, ids) == text and not special_ids & set(ids)


def test_special_literals_stay_text_after_loading(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    Qwen2Config().save_pretrained(tmp_path)  # AutoTokenizer would make a Qwen2Tokenizer with one token more of it
    loaded = load_tokenizer(tmp_path)
    assert len(loaded) == len(tokenizer) and specials(loaded) == specials(tokenizer)
    for each in (tokenizer, loaded):
        ids = encode(each, LITERALS)
        assert decode(each, ids) == LITERALS and not set(ids) & set(specials(each).not_text)


def test_special_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    names = specials(tokenizer)
    assert [names.pad, names.bos, names.mask, names.gap, names.fill, names.end] == list(range(6))
    assert names.lengths == (6, 7, 8, 9) and names.banned == ()
    assert decode(tokenizer, names.not_text) == ""
    assert specials(train_tokenizer(TEXTS, vocab_size=300)).lengths == ()


def test_training_is_deterministic(tokenizer: PreTrainedTokenizerFast) -> None:
    assert train_tokenizer(iter(TEXTS), vocab_size=320, lengths=3).get_vocab() == tokenizer.get_vocab()


def test_vocabulary_too_small() -> None:
    assert len(train_tokenizer(TEXTS, vocab_size=266, lengths=3)) == 266
    with pytest.raises(ValueError, match="vocab_size=265.*need 266"):
        train_tokenizer(TEXTS, vocab_size=265, lengths=3)


def test_prepare_a_bert_tokenizer(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    with pytest.raises(ValueError, match=r"no \[GAP\] token.*prepare_tokenizer"):
        specials(tokenizer)
    assert prepare_tokenizer(tokenizer, lengths=2) is tokenizer
    names = specials(tokenizer)
    assert (names.bos, names.pad, names.mask) == (1, 3, 4), "its own tokens are used"
    assert (names.gap, names.fill, names.end, names.lengths) == (12, 13, 14, (15, 16, 17))
    assert names.banned == (0, 2), "UNK and SEP"
    assert encode(tokenizer, "the [MASK] [GAP]") == [5, 7, 0, 8, 7, 0, 8]
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert specials(loaded) == names and encode(loaded, "the [mask] [GAP]") == [5, 7, 9, 8, 7, 0, 8]
    size = len(tokenizer)
    assert len(prepare_tokenizer(tokenizer, lengths=2)) == size, "twice changes nothing"


def test_prepare_bert_class_and_one_without_any_roles() -> None:
    bert = prepare_tokenizer(BertTokenizerFast(vocab=wordpiece().get_vocab()))
    assert specials(bert).bos == bert.cls_token_id and specials(bert).lengths == ()
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match="no pad token"):
        specials(bare)
    names = specials(prepare_tokenizer(bare, lengths=1))
    assert len({names.pad, names.bos, names.mask, names.gap, names.fill, names.end, *names.lengths}) == 8


def test_lone_surrogate(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"U\+D83D at character 2"):
        encode(tokenizer, "ab\ud83dc")
