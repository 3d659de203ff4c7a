"""Random documents, and the many ways of laying the same ones out in packed rows."""

from typing import Any, NamedTuple

import numpy as np

N_HEADS, VOCAB = 3, 11


class Document(NamedTuple):
    """One sample, L tokens: a prompt, a response, perhaps tokens after it that are not trained on."""

    tokens: np.ndarray  # (L,)
    response: np.ndarray  # (L,) bool
    outcomes: np.ndarray  # (L,) R at each position
    values: np.ndarray  # (L,) V[t]
    logits: np.ndarray  # (L, n, V) of the policy
    reference_ce: np.ndarray  # (L,) loss of token u under the reference


class Batch(NamedTuple):
    """The same in rows, (B, S, ...), with the document numbers; 0 is padding."""

    tokens: Any
    response: Any
    outcomes: Any
    values: Any
    logits: Any
    reference_ce: Any
    segment_ids: Any


def random_document(rng: np.random.Generator, prompt: int, response: int, tail: int = 0) -> Document:
    length = prompt + response + tail
    place = np.arange(length)
    return Document(
        rng.integers(0, VOCAB, length),
        (place >= prompt) & (place < prompt + response),
        np.full(length, rng.integers(0, 2), np.float32),
        rng.uniform(size=length).astype(np.float32),
        rng.normal(size=(length, N_HEADS, VOCAB)).astype(np.float32),
        rng.exponential(2.0, length).astype(np.float32),
    )


def random_documents(seed: int, lengths: list[tuple[int, int, int]]) -> list[Document]:
    rng = np.random.default_rng(seed)
    return [random_document(rng, *each) for each in lengths]


# A few of every kind: no prompt (the first token is a response), no response, one response token, a tail.
LENGTHS = [(3, 6, 0), (0, 5, 0), (4, 1, 0), (2, 7, 2), (5, 0, 0), (1, 8, 0)]


class Layout(NamedTuple):
    """Where each document stands: its row and its first column."""

    shape: tuple[int, int]
    places: list[tuple[int, int]]

    def pack(self, documents: list[Document]) -> Batch:
        rng = np.random.default_rng(0)
        # Padding holds large numbers: whatever leaks out of it is seen.
        junk = {"tokens": rng.integers(0, VOCAB, self.shape), "response": np.zeros(self.shape, bool)}
        for name in ("outcomes", "values", "reference_ce"):
            junk[name] = rng.normal(50, 10, self.shape).astype(np.float32)
        junk["logits"] = rng.normal(0, 10, (*self.shape, N_HEADS, VOCAB)).astype(np.float32)
        batch = Batch(**junk, segment_ids=np.zeros(self.shape, np.int32))
        number = dict.fromkeys(range(self.shape[0]), 0)
        for document, (row, start) in sorted(zip(documents, self.places, strict=True), key=lambda pair: pair[1]):
            end = start + len(document.tokens)
            number[row] += 1
            batch.segment_ids[row, start:end] = number[row]
            for name, field in document._asdict().items():
                getattr(batch, name)[row, start:end] = field
        return batch

    def unpack(self, x: Any, documents: list[Document]) -> list[np.ndarray]:
        """What stands at each document's positions, document by document."""
        x = np.asarray(x)
        return [
            x[row, start : start + len(document.tokens)]
            for document, (row, start) in zip(documents, self.places, strict=True)
        ]


def one_a_row(documents: list[Document], shape: tuple[int, int]) -> Layout:
    return Layout(shape, [(row, 0) for row in range(len(documents))])


def scattered(documents: list[Document], shape: tuple[int, int], seed: int) -> Layout:
    """Documents in random order in random rows, with padding after and here and there before them."""
    rng = np.random.default_rng(seed)
    used = np.zeros(shape[0], int)
    places = [(0, 0)] * len(documents)
    for i in rng.permutation(len(documents)):
        length, gap = len(documents[i].tokens), max(0, int(rng.integers(-3, 3)))  # mostly side by side
        row = int(rng.choice(np.flatnonzero(used + gap + length <= shape[1])))
        places[i] = (row, int(used[row]) + gap)
        used[row] += gap + length
    return Layout(shape, places)
