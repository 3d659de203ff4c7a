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
_SPECIAL = ("<unk>", "<s>", "</s>")
SMALLEST_VOCABULARY = 256 + len(_SPECIAL)  # of a byte-level tokenizer
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for one
# What tokenizers cut differently: runs of digits, capitals after an apostrophe, spaces and line ends, scripts.
_PROBE = (
    "def f(x0):\r\n\n\t  if x >= 12345678.25:  # 안녕 \u4e16\u754c e\u0301 \U0001f469\u200d\U0001f4bb\n"
    "        return'S == \"it's, I'LL'Sx\" != {'a_b': -1e-9}   \n\n    \n\t\tHTTPServer.x2y2()//===|<s></s>\0\x85"
)


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
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"{directory}: holds no tokenizer (no tokenizer.json or tokenizer.model)")
    try:
        # AutoTokenizer would do, but importing it imports torch where that is installed: 200 MB in every worker.
        tokenizer = _tokenizer_class(directory).from_pretrained(directory, clean_up_tokenization_spaces=False)
    except Exception as error:  # transformers raises many kinds; the remedy is the same for all
        raise UserError(
            f"{directory}: transformers cannot load a tokenizer from it ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]}); it needs tokenizer.json, or SentencePiece's tokenizer.model "
            "with tokenizer_config.json"
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{directory}: the tokenizer has no end-of-sequence token; set eos_token in its config")
    _keep_special_tokens_apart(tokenizer)
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


def encode_responses(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids (T,) int32 of texts that follow a prompt, each closed by the end-of-sequence token.

    Behind the tokens of a prompt they decode to the text to the letter. The end-of-sequence token is trained
    on: without it a model never learns to stop.

    Raises:
      UserError: the tokenizer cannot keep the boundary exact, or reads a text as the end of the sequence.
    """
    eos = tokenizer.eos_token_id
    responses = _encode_continuations(tokenizer, texts)
    for ids, text in zip(responses, texts, strict=True):
        if eos in ids:
            raise UserError(
                f"this tokenizer reads the text {tokenizer.eos_token!r} as the end of the sequence (response "
                f"{text[:40]!r}); use a byte-pair tokenizer, or leave the response out"
            )
    return [np.array([*ids, eos], np.int32) for ids in responses]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what decides a text's tokens: vocabulary, merges, special tokens, and how a text is cut.

    One tokenizer has one fingerprint, whichever file it was loaded from. So what the files say in different ways
    (SentencePiece's dummy space, the order of merges that make the same token) is hashed by what it does.
    """
    backend = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    added = backend.get_added_tokens_decoder()
    in_text = model["vocab"]
    vocab = {**(in_text if isinstance(in_text, dict) else {}), **{token.content: i for i, token in added.items()}}
    made: dict[str, list[int]] = {}  # token -> where the merges that make it join, in the order of the merges
    for left, right in model.get("merges", ()):
        made.setdefault(left + right, []).append(len(left))
    for joins in made.values():
        joins.sort()
    # A small vocabulary's tokens do not show every cut into words; SentencePiece makes none.
    cut = backend.pre_tokenizer
    words = [(_PROBE, (0, len(_PROBE)))] if cut is None else cut.pre_tokenize_str(_PROBE)
    content = [
        # Unigram's pieces are a list, with their scores.
        *(sorted(vocab, key=vocab.__getitem__), sorted(vocab.values()), in_text if isinstance(in_text, list) else []),
        *(made, model.get("ignore_merges", False)),
        [tokenizer.bos_token_id, tokenizer.eos_token_id, *sorted(i for i in added if added[i].special)],
        *(_encode(tokenizer, [_PROBE]), [span for _, span in words]),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _transformers() -> ModuleType:
    """The library, imported without its advice that torch is missing: only its tokenizers are used."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with contextlib.redirect_stderr(io.StringIO()):
        import transformers
    return transformers


def _tokenizer_class(directory: Path) -> type[PreTrainedTokenizerBase]:
    """``tokenizer.json`` says how it reads a text; ``tokenizer.model`` leaves part of that to the config's class."""
    if (directory / "tokenizer.json").is_file():
        return _transformers().PreTrainedTokenizerFast
    import sentencepiece

    # Raises where the file has another form, as Llama 3's of that name, which transformers would misread.
    sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    return getattr(_transformers(), config.get("tokenizer_class", "PreTrainedTokenizerFast"))


def _keep_special_tokens_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    """Removes the merges that make a special token, or SentencePiece's sign for a byte, from the text that spells it.

    The conversion from SentencePiece takes every pair of pieces that together spell a piece for a merge, so with
    "</" and "s>" in the vocabulary a program that prints "</s>" would end there. SentencePiece merges neither.
    """
    from tokenizers.models import BPE

    backend = tokenizer.backend_tokenizer
    model = backend.model
    if not isinstance(model, BPE):
        return
    apart = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    if model.byte_fallback:
        apart.update(f"<0x{byte:02X}>" for byte in range(256))
    if not any(model.token_to_id(token) is not None for token in apart):
        return  # Llama 3's are outside the vocabulary that merges make; its file is too large to look through in vain
    content = json.loads(backend.to_str())["model"]
    merges = [(left, right) for left, right in content["merges"] if left + right not in apart]
    if len(merges) < len(content["merges"]):
        given = {name: value for name, value in content.items() if name != "type" and value is not None}
        backend.model = BPE(**given | {"merges": merges})


def _puts_space_before(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text of its own gets a space before it, as SentencePiece does."""
    return tokenizer.convert_ids_to_tokens(_encode(tokenizer, ["x"])[0])[0].startswith(_SPACE)


def _encode_continuations(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts that follow another text.

    SentencePiece puts a space before a text of its own, which would turn every first line of code into
    an indented one. There the text is encoded after a line feed (the prompt's last character) and
    that one token is taken off again.
    """
    if not _puts_space_before(tokenizer):
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


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each text, of its letters alone: a text that spells "</s>" is that text, not an end."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    backend.no_truncation()  # a tokenizer.json may ask for both
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
