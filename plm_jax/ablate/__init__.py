"""Ablations: the tables of the papers, run, measured and compared with the published numbers."""

from plm_jax import __path__ as _places

# Committed reports spell the commands `python -m plm_jax.ablate.sweep`: plm_jax/commands runs them.
__path__.append(_places[-1])
