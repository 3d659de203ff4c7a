"""The boundary between prompt and response is exact, for byte-level BPE and for SentencePiece."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp_jax.data.tokenize import (
    RESPONSE_HEADER,
    encode_examples,
    encode_prompts,
    load_tokenizer,
    prompt_text,
    train_tokenizer,
)
from wmtp_jax.errors import UserError

TEXTS = ["def solve(x):\n    return x + 1\n", "for i in range(n):\n    print(i)", "read two integers"] * 20


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    folder = tmp_path_factory.mktemp("byte-level")
    train_tokenizer(TEXTS, 300, folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory):
    """A tokenizer as LLaMA's: BPE with byte fallback and a space before the text."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text").write_text("\n".join(TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def example(instruction: str, output: str, input: str = ""):
    return SimpleNamespace(instruction=instruction, input=input, output=output, is_correct=True)


ODD = ["x = 1", "  indented\n", "\tx\r\ny", "", "\n\n", " ", "é 한국어 \N{SNAKE}", "</s>"]


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_boundary(kind: str, data, byte_level, sentence_piece):
    tokenizer = {"byte_level": byte_level, "sentence_piece": sentence_piece}[kind]
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    texts = st.one_of(st.sampled_from(ODD), text)
    sample = example(data.draw(texts), data.draw(texts))
    (encoded,) = encode_examples(tokenizer, [sample])
    (prompt,) = encode_prompts(tokenizer, [sample])
    ids = encoded.tokens.tolist()
    assert ids[: encoded.n_prompt] == prompt
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[:-1]
    before = tokenizer.decode(ids[1 : encoded.n_prompt], clean_up_tokenization_spaces=False)
    whole = tokenizer.decode(ids[1:-1], clean_up_tokenization_spaces=False)
    assert before == prompt_text(sample.instruction)
    assert whole == prompt_text(sample.instruction) + sample.output


def test_first_line_of_code_is_not_indented(sentence_piece):
    (encoded,) = encode_examples(sentence_piece, [example("add", "def f(x): pass")])
    first = sentence_piece.convert_ids_to_tokens([int(encoded.tokens[encoded.n_prompt])])[0]
    assert first.startswith("d")


def test_prompt_form():
    assert prompt_text("do it") == f"### Instruction:\ndo it\n\n{RESPONSE_HEADER}"
    assert prompt_text("do it", "on this") == (f"### Instruction:\ndo it\n\n### Input:\non this\n\n{RESPONSE_HEADER}")


def test_vocabulary_too_small(tmp_path: Path):
    with pytest.raises(UserError, match="give --vocab-size 259"):
        train_tokenizer(TEXTS, 100, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_missing_and_damaged_tokenizer(tmp_path: Path):
    with pytest.raises(UserError, match="no tokenizer there"):
        load_tokenizer(tmp_path / "absent")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot load a tokenizer"):
        load_tokenizer(tmp_path)
