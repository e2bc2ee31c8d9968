"""TFDS builders of the project, registered by importing them."""
