"""The TFDS data set `installed_text`."""

from data.installed_text.installed_text_dataset_builder import Builder

__all__ = ["Builder"]
