"""Text to tokens: the prompt, the response, and the exact boundary between them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wmtp_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from wmtp_jax.data.schema import Example

RESPONSE_HEADER = "### Response:\n"
_FILES = (
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)
_PROBE = "### Response:\nfor i in range(10):\n\tprint(i)  # 안녕 \U0001f600\n"
_SPECIAL = ("<unk>", "<s>", "</s>")
SMALLEST_VOCABULARY = 256 + len(_SPECIAL)  # of a byte-level tokenizer


class TokenizedExample(NamedTuple):
    """One example as a language model sees it.

    Attributes:
      tokens: int32 (T,): beginning-of-sequence, prompt, response, end-of-sequence.
      n_prompt: number of leading tokens that belong to the prompt; the rest is trained on.
      outcome: R, 1.0 if the solution is correct, else 0.0.
    """

    tokens: np.ndarray
    n_prompt: int
    outcome: float = 1.0


def prompt_text(instruction: str, input: str = "") -> str:
    """The prompt in the Alpaca form (instruction, optional input, response header)."""
    parts = [f"### Instruction:\n{instruction}\n\n"]
    if input:
        parts.append(f"### Input:\n{input}\n\n")
    return "".join(parts) + RESPONSE_HEADER


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The Hugging Face tokenizer in a directory.

    Raises:
      UserError: no tokenizer there, it is damaged, or it has no end-of-sequence token.
    """
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no tokenizer there; `prepare --dataset mini` makes one, a converted model brings "
            "one along, and model.tokenizer names another"
        )
    try:
        tokenizer = _transformers().AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # transformers raises many kinds; the remedy is the same for all
        raise UserError(
            f"{directory}: transformers cannot load a tokenizer from it ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); it needs tokenizer.json, or tokenizer.model with "
            "tokenizer_config.json"
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{directory}: the tokenizer has no end-of-sequence token; set eos_token in its config")
    return tokenizer


def copy_tokenizer(source: Path, target: Path) -> bool:
    """Copies the tokenizer's files of a folder into another; False where it holds none.

    A bare SentencePiece ``tokenizer.model`` (Meta's form) gets the config that makes it LLaMA's.
    """
    files = [source / name for name in _FILES if (source / name).is_file()]
    if not any(file.name in ("tokenizer.model", "tokenizer.json") for file in files):
        return False
    target.mkdir(exist_ok=True)
    for file in files:
        shutil.copy(file, target)
    if not (target / "tokenizer_config.json").exists() and (target / "tokenizer.model").exists():
        content = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (target / "tokenizer_config.json").write_text(json.dumps(content, indent=2) + "\n")
    return True


def train_tokenizer(texts: Iterable[str], vocab_size: int, directory: Path) -> None:
    """Trains a byte-level BPE tokenizer on ``texts`` and writes it to ``directory``.

    Args:
      texts: what it should be good at.
      vocab_size: number of tokens, the 256 bytes and three special tokens included.
      directory: made if absent; `load_tokenizer` reads it.

    Raises:
      UserError: ``vocab_size`` is too small to hold every byte.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"a vocabulary of {vocab_size} cannot hold the 256 bytes and {len(_SPECIAL)} special tokens; "
            f"give --vocab-size {SMALLEST_VOCABULARY} or more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = _transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(directory)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[list[int]]:
    """Token ids of the prompts: what generation starts from, and what training puts before a response."""
    texts = [prompt_text(example.instruction, example.input) for example in examples]
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [bos + ids for ids in _encode(tokenizer, texts)]


def encode_examples(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[TokenizedExample]:
    """Tokenises prompt and response apart, so that the boundary is exact for every tokenizer.

    The tokens before the boundary are the very ones that generation starts from, and what follows them
    decodes, after the prompt, to the response to the letter. The end-of-sequence token closes the
    response and is trained on: without it a model never learns to stop.
    """
    prompts = encode_prompts(tokenizer, examples)
    responses = _encode_continuations(tokenizer, [example.output for example in examples])
    eos = [tokenizer.eos_token_id]
    return [
        TokenizedExample(np.array(prompt + response + eos, np.int32), len(prompt), float(example.is_correct))
        for prompt, response, example in zip(prompts, responses, examples, strict=True)
    ]


def encode_responses(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[np.ndarray]:
    """Tokens of responses, each closed by end-of-sequence."""
    eos = [tokenizer.eos_token_id]
    return [np.array(ids + eos, np.int32) for ids in _encode_continuations(tokenizer, list(texts))]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over a tokenizer's vocabulary, its special tokens, and how it cuts a text."""
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.bos_token_id, tokenizer.eos_token_id]
    content.append(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _transformers() -> ModuleType:
    """The library, imported without its advice that torch is missing: only its tokenizers are used."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with contextlib.redirect_stderr(io.StringIO()):
        import transformers
    return transformers


def _encode_continuations(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Tokens of texts that follow another text.

    SentencePiece puts a space before a text of its own, which would turn every first line of code into
    an indented one. There the text is encoded after a line feed (the prompt's last character) and
    that one token is taken off again.
    """
    first = tokenizer.convert_ids_to_tokens(_encode(tokenizer, ["x"])[0])[0]
    if not first.startswith("\N{LOWER ONE EIGHTH BLOCK}"):
        return _encode(tokenizer, texts)
    anchor = _encode(tokenizer, ["\n"])[0]
    encoded = _encode(tokenizer, ["\n" + text for text in texts])
    for ids, text in zip(encoded, texts, strict=True):
        if ids[: len(anchor)] != anchor:
            raise UserError(
                "this tokenizer joins a line feed with what follows it, so the boundary between prompt and "
                f"response cannot be kept exact (response {text[:40]!r}); use the tokenizer of the model"
            )
    return [ids[len(anchor) :] for ids in encoded]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    # split_special_tokens: a text that spells "</s>" is that text, not the end of the sequence.
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,  # a long text is no news: it is left out and counted later
    )
    return encoded["input_ids"]
