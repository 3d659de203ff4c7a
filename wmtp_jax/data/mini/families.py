from wmtp_jax.data.mini import lists
FAMILIES = (*lists.FAMILIES,)
BY_NAME = {f.name: f for f in FAMILIES}
