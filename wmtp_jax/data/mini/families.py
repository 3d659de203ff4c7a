"""All families of the embedded problems."""

from wmtp_jax.data.mini import lists, numbers, strings, tables

FAMILIES = (*lists.FAMILIES, *numbers.FAMILIES, *strings.FAMILIES, *tables.FAMILIES)
BY_NAME = {family.name: family for family in FAMILIES}
