"""The boundary between prompt and response is exact, for SentencePiece, byte-level BPE and Llama 3's tokenizers."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from wmtp_jax.data.tokenize import (
    RESPONSE_HEADER,
    TokenizedExample,
    encode_prompts,
    encode_responses,
    load_tokenizer,
    prompt_text,
    tokenizer_fingerprint,
    train_tokenizer,
)
from wmtp_jax.errors import UserError

TEXTS = ["def solve(x):\n    return x + 1234567\n", "for i in range(n):\n        print(i)", "read two integers"] * 20
# So that pieces are learnt which together spell special tokens, and runs.
SPELLED = ["<s>a</s> <s", "s>", "</s", "</", "<unk", "unk>", "<0x0A>", "<0x0", "A>", "x0A>", "a" * 14, "= " * 8] * 20
LLAMA_2 = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LLAMA_3_SPLIT = (  # what the published tokenizer.json says
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS = ["byte_level", "llama_2", "llama_2_json", "llama_3"]


def write_llama_2(folder: Path) -> None:
    """As Meta publishes it: BPE with byte fallback and a space before the text."""
    folder.mkdir()
    (folder / "text").write_text("\n".join(TEXTS + SPELLED))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=460,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_by_unicode_script=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "text").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(LLAMA_2))


def write_llama_2_json(model: Path, folder: Path) -> None:
    """Its published conversion: space and sign are the normalizer's, merges that make one token longest left first."""
    folder.mkdir()
    pieces = sentencepiece.SentencePieceProcessor(str(model))
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    ways = [(whole[:i], whole[i:]) for whole in vocab for i in range(len(whole) - 1, 0, -1)]
    bpe = models.BPE(
        vocab, [way for way in ways if set(way) <= vocab.keys()], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    converted = Tokenizer(bpe)
    converted.add_special_tokens([tokenizers.AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    converted.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    converted.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    converted.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    converted.save(str(folder / "tokenizer.json"))
    content = LLAMA_2 | {"legacy": False, "add_bos_token": True, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def write_llama_3(folder: Path) -> None:
    folder.mkdir()
    llama = Tokenizer(models.BPE(ignore_merges=True))
    llama.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    llama.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    llama.train_from_iterator(
        TEXTS + SPELLED, trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet, show_progress=False)
    )
    special = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(254))]
    llama.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False) for s in special])
    first = llama.token_to_id(special[0])
    template = processors.TemplateProcessing(
        single=f"{special[0]} $A",
        pair=f"{special[0]} $A {special[0]}:1 $B:1",
        special_tokens=[(special[0], first)],
    )
    llama.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    llama.save(str(folder / "tokenizer.json"))
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False) | {"special": True}
    content = {
        "added_tokens_decoder": {str(first + i): {"content": s} | flags for i, s in enumerate(special)},
        "bos_token": special[0],
        "eos_token": special[1],
        "clean_up_tokenization_spaces": True,
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer(TEXTS + SPELLED, 340, folder / "byte_level")
    write_llama_2(folder / "llama_2")
    write_llama_2_json(folder / "llama_2/tokenizer.model", folder / "llama_2_json")
    write_llama_3(folder / "llama_3")
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="module")
def loaded(folders) -> dict[str, Any]:
    return {kind: load_tokenizer(folder) for kind, folder in folders.items()}


def encode(tokenizer, examples) -> list[TokenizedExample]:
    """Prompt and response put together, as a data set has them."""
    prompts = encode_prompts(tokenizer, examples)
    responses = encode_responses(tokenizer, [one.output for one in examples])
    return [
        TokenizedExample(np.array([*prompt, *response], np.int32), len(prompt))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def example(instruction: str, output: str, input: str = ""):
    return SimpleNamespace(instruction=instruction, input=input, output=output, is_correct=True)


ODD = [
    *(
        "",
        " ",
        "  ",
        "\t",
        "\n",
        "\n\n",
        "\r",
        "\r\n",
        "x = 1",
        "  indented\n",
        " one",
        "\tx\r\ny\rz",
        "x  \n  ",
        "x \t ",
    ),
    *("é 한국어 \N{SNAKE}", "e\u0301\u0301 \u200b\ufeff\u200d", "\U0001f469\u200d\U0001f4bb世界", "\u2028\x85\xa0x"),
    *("▁", "▁▁x ▁", " ▁", "\0", "a\0b", "\x7f\uffff\U0010ffff", "I'LL it's 1234567 3.14"),
    *("</s>", "<s>", "a</s>b", "<unk>", "<0x0A>", "x<0x0A>\n", "<|end_of_text|>", "<|begin_of_text|>x"),
    *("<|reserved_special_token_7|>", "### Response:\n", "a" * 2000, "=" * 1999, " " * 1001, "\n" * 777, "ab" * 500),
]
ANY = st.one_of(st.sampled_from(ODD), st.lists(st.sampled_from(ODD), max_size=3).map("".join), st.text(max_size=20))


def check_boundary(tokenizer: Any, instruction: str, output: str, input: str) -> None:
    sample = example(instruction, output, input)
    (encoded,) = encode(tokenizer, [sample])
    (prompt,) = encode_prompts(tokenizer, [sample])
    (response,) = encode_responses(tokenizer, [output])
    ids = encoded.tokens.tolist()
    assert ids[: encoded.n_prompt] == prompt
    assert ids[encoded.n_prompt :] == response.tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert not set(tokenizer.all_special_ids) & set(ids[1:-1])
    text, whole = prompt_text(instruction, input), prompt_text(instruction, input) + output
    if "▁" in tokenizer.get_vocab():  # SentencePiece has one sign for both
        text, whole = text.replace("▁", " "), whole.replace("▁", " ")
    else:
        assert tokenizer.decode(ids[encoded.n_prompt : -1]) == output
    assert tokenizer.decode(ids[1 : encoded.n_prompt]) == text
    assert tokenizer.decode(ids[1:-1]) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_boundary_of_odd_texts(kind: str, loaded):
    for text, other in pairwise([*ODD, ODD[0]]):
        check_boundary(loaded[kind], text, other, "")
        check_boundary(loaded[kind], other, text, other)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(instruction=ANY, output=ANY, input=ANY)
def test_boundary(kind: str, loaded, instruction: str, output: str, input: str):
    check_boundary(loaded[kind], instruction, output, input)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_any_size_give_the_same_tokens(kind: str, loaded):
    tokenizer = loaded[kind]
    together = encode(tokenizer, [example(text, text[::-1]) for text in ODD])
    for text, one in zip(ODD, together, strict=True):
        (alone,) = encode(tokenizer, [example(text, text[::-1])])
        assert alone.tokens.tolist() == one.tokens.tolist()
        assert alone.n_prompt == one.n_prompt
    assert encode_responses(tokenizer, []) == []
    assert encode_responses(tokenizer, tuple(ODD))[0].dtype == "int32"


@pytest.mark.parametrize("kind", ["llama_2", "llama_2_json"])
@settings(max_examples=60, deadline=None)
@given(text=ANY)
def test_sentencepiece_cuts_as_its_own_library(kind: str, loaded, folders, text: str):
    own = sentencepiece.SentencePieceProcessor(str(folders["llama_2"] / "tokenizer.model"))
    sample = example(text, text)
    assert encode_prompts(loaded[kind], [sample]) == [[1, *own.encode(prompt_text(text))]]
    whole = own.encode("\n" + text)
    assert whole[:2] == own.encode("\n")  # the dummy space and the line feed
    assert encode_responses(loaded[kind], [text])[0].tolist() == [*whole[2:], 2]


@pytest.mark.parametrize("kind", ["byte_level", "llama_3"])
def test_byte_level_response_is_the_text_of_its_own(kind: str, loaded):
    """Nothing of ours may change what the published tokenizer gives for a text without special tokens."""
    for text in TEXTS[:3]:
        own = loaded[kind](text, add_special_tokens=False)["input_ids"]
        assert encode_responses(loaded[kind], [text])[0].tolist() == [*own, loaded[kind].eos_token_id]


def test_first_line_of_code_is_not_indented(loaded):
    (encoded,) = encode(loaded["llama_2"], [example("add", "def f(x): pass")])
    first = loaded["llama_2"].convert_ids_to_tokens([int(encoded.tokens[encoded.n_prompt])])[0]
    assert first.startswith("d")


def test_truncation_and_padding_in_the_file_are_not_followed(folders, loaded, tmp_path: Path):
    changed = change(folders["llama_3"], tmp_path / "cut", lambda t: (t.enable_truncation(4), t.enable_padding()))
    texts = ["def solve(x):\n", "x"]
    want = [ids.tolist() for ids in encode_responses(loaded["llama_3"], texts)]
    assert [ids.tolist() for ids in encode_responses(changed, texts)] == want


def test_a_tokenizer_that_reads_the_end_in_a_text(tmp_path: Path):
    """Unigram pieces are taken by their scores, special ones too."""
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((c, -2.0) for c in "</s>ab")], 0, False))
    unigram.add_special_tokens(["</s>"])
    unigram.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    tokenizer = load_tokenizer(tmp_path)
    assert len(encode_responses(tokenizer, ["ab"])[0]) == 3
    with pytest.raises(UserError, match="as the end of the sequence"):
        encode_responses(tokenizer, ["a</s>b"])


def change(source: Path, target: Path, edit: Callable[[Tokenizer], object] | None = None, **model: Any) -> Any:
    """A tokenizer of ``tokenizer.json`` with one thing changed, loaded."""
    shutil.copytree(source, target)
    content = json.loads((target / "tokenizer.json").read_text())
    content["model"].update(model)
    backend = Tokenizer.from_str(json.dumps(content))
    if edit is not None:
        edit(backend)
    backend.save(str(target / "tokenizer.json"))
    return load_tokenizer(target)


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint_is_the_same_however_loaded(kind: str, loaded, folders, tmp_path: Path):
    want = tokenizer_fingerprint(loaded[kind])
    loaded[kind](["x"], padding=False, truncation=True, max_length=3)  # use of it leaves no trace
    loaded[kind].save_pretrained(tmp_path / "saved")
    assert tokenizer_fingerprint(loaded[kind]) == want
    assert tokenizer_fingerprint(load_tokenizer(tmp_path / "saved")) == want
    assert tokenizer_fingerprint(load_tokenizer(folders[kind])) == want


def test_fingerprints_of_both_forms_of_llama_2(loaded, folders, tmp_path: Path):
    model, converted = loaded["llama_2"], loaded["llama_2_json"]
    assert model.backend_tokenizer.to_str() != converted.backend_tokenizer.to_str()
    assert tokenizer_fingerprint(model) == tokenizer_fingerprint(converted)
    both = shutil.copytree(folders["llama_2_json"], tmp_path / "both")
    shutil.copy(folders["llama_2"] / "tokenizer.model", both)
    assert tokenizer_fingerprint(load_tokenizer(both)) == tokenizer_fingerprint(model)


def test_fingerprint_differs_with_what_differs(folders, loaded, tmp_path: Path):
    source = folders["llama_3"]
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    vocab, merges = model["vocab"], model["merges"]
    swapped = vocab | {"Q": vocab["Z"], "Z": vocab["Q"]}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def cut(old: str, new: str) -> Callable[[Tokenizer], None]:
        split = pre_tokenizers.Split(Regex(LLAMA_3_SPLIT.replace(old, new)), behavior="isolated")

        def edit(tokenizer: Tokenizer) -> None:
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])

        return edit

    def normalize(tokenizer: Tokenizer) -> None:
        tokenizer.normalizer = normalizers.NFC()

    def no_space_before(tokenizer: Tokenizer) -> None:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")

    changed = {
        "vocabulary": change(source, tmp_path / "v", vocab=swapped),
        "merge order": change(source, tmp_path / "o", merges=[merges[1], merges[0], *merges[2:]]),
        "fewer merges": change(source, tmp_path / "f", merges=merges[:-1]),
        "ignore_merges": change(source, tmp_path / "i", ignore_merges=False),
        "digits": change(source, tmp_path / "d", cut("{1,3}", "{1,2}")),
        "a cut that its few merges do not show": change(source, tmp_path / "c", cut("'s|", "")),
        "normalizer": change(source, tmp_path / "n", normalize),
        "special": change(source, tmp_path / "s", lambda t: t.add_special_tokens(["x"])),
        "no space before": change(folders["llama_2_json"], tmp_path / "b", no_space_before),
    }
    for name in ("bos", "eos"):
        changed[name] = load_tokenizer(source)
        setattr(changed[name], f"{name}_token", "<|reserved_special_token_0|>")
    prints = {name: tokenizer_fingerprint(tokenizer) for name, tokenizer in changed.items()}
    prints |= {kind: tokenizer_fingerprint(tokenizer) for kind, tokenizer in loaded.items() if kind != "llama_2_json"}
    assert len(set(prints.values())) == len(prints), prints


def test_fingerprint_of_a_large_vocabulary_is_quick(tmp_path: Path):
    """As large as Llama 3's: each start of a step does it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(alphabet)}
    pairs = [(a, b) for a in alphabet for b in alphabet]
    merges = pairs + [(a + b, c) for c in "ab" for a, b in pairs][:62_000]
    vocab |= {a + b: len(alphabet) + i for i, (a, b) in enumerate(merges)}
    large = Tokenizer(models.BPE(vocab, merges))
    large.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    large.add_special_tokens(["</s>"])
    large.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) > 127_000
    started = time.process_time()
    tokenizer_fingerprint(tokenizer)
    assert time.process_time() - started < 2  # a third of a second on an idle core


@pytest.mark.parametrize("kind", ["byte_level", "llama_2"])
def test_a_worker_imports_neither_torch_nor_jax(kind: str, folders):
    program = (
        "import sys; from pathlib import Path; from wmtp_jax.data import tokenize as t; "
        "t.encode_responses(t.load_tokenizer(Path(sys.argv[1])), ['x']); "
        "assert not {'torch', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(folders[kind])], check=True)


def test_prompt_form():
    assert prompt_text("do it") == f"### Instruction:\ndo it\n\n{RESPONSE_HEADER}"
    assert prompt_text("do it", "on this") == (f"### Instruction:\ndo it\n\n### Input:\non this\n\n{RESPONSE_HEADER}")


def test_vocabulary_too_small(tmp_path: Path):
    with pytest.raises(UserError, match="give --vocab-size 259"):
        train_tokenizer(TEXTS, 100, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_missing_and_damaged_tokenizer(folders, tmp_path: Path):
    with pytest.raises(UserError, match="no tokenizer there"):
        load_tokenizer(tmp_path / "absent")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot load a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    shutil.copy(folders["llama_2"] / "tokenizer_config.json", tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # the form of Llama 3's tokenizer.model
    with pytest.raises(UserError, match="or SentencePiece's tokenizer"):
        load_tokenizer(tmp_path)
