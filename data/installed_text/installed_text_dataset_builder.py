"""TFDS builder over `plm_jax.data.installed_text`: prepared once, stored as ArrayRecord.

The configuration is named after a digest of the Python and package versions that the text comes
from, so that another environment gets a folder of its own.
"""

import tensorflow_datasets as tfds

from plm_jax.data import installed_text


class Builder(tfds.core.GeneratorBasedBuilder):
  """Documentation inside the installed packages, cleaned to prose; one document per module."""

  name = "installed_text"
  # Nothing is downloaded. TFDS would look for checksums with importlib_resources, which it does not
  # declare as a dependency.
  url_infos = None
  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 - TFDS wants a plain dict
  BUILDER_CONFIGS = [  # noqa: RUF012
    tfds.core.BuilderConfig(
      name=installed_text.version(),
      description="The text of the Python and the packages installed here.",
    )
  ]

  def __init__(self, **kwargs):
    self._record = tfds.core.MetadataDict()
    super().__init__(file_format="array_record", **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=installed_text.__doc__,
      features=tfds.features.FeaturesDict(
        {
          "name": tfds.features.Text(doc="Dotted name of the module, or of the topic."),
          "label": tfds.features.Text(doc="Top-level package; `python`: the standard library."),
          "text": tfds.features.Text(doc="One sentence per line."),
        }
      ),
      metadata=self._record,
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    documents, record = installed_text.documents()
    self.info.metadata.update(record)
    return {"train": self._generate_examples(documents)}

  def _generate_examples(self, documents):
    for position, document in enumerate(documents):
      yield (
        position,
        {
          "name": document.name,
          "label": document.label,
          "text": "\n".join(document.sentences),
        },
      )
