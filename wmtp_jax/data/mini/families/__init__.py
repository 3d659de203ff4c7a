"""All families of the embedded problems, by theme."""

from wmtp_jax.data.mini.families import (
    digits,
    divisibility,
    letters,
    list_changing,
    list_counting,
    list_searching,
    pairs,
    processes,
    tables,
    texts,
    words,
)

FAMILIES = (
    *list_counting.FAMILIES,
    *list_searching.FAMILIES,
    *list_changing.FAMILIES,
    *divisibility.FAMILIES,
    *processes.FAMILIES,
    *digits.FAMILIES,
    *letters.FAMILIES,
    *texts.FAMILIES,
    *words.FAMILIES,
    *tables.FAMILIES,
    *pairs.FAMILIES,
)
BY_NAME = {family.name: family for family in FAMILIES}
