"""Pre-trained language models in JAX: train, ablate and compare every step of the story."""

from pathlib import Path

__version__ = "0.1.0"
# Makes `python -m plm_jax.generate` run plm_jax/commands/generate.py.
__path__.append(str(Path(__file__).parent / "commands"))
