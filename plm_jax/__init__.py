"""Pre-trained language models in JAX/Flax: train, ablate and compare every step of the story."""

__version__ = "0.1.0"
