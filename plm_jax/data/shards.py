"""Shards of a text: parts that are read alone, for a sample or by a machine of a cluster.

A file is a shard, and so is each file that TFDS stored a split in. Any other text is one shard.
"""

from collections.abc import Iterator
from typing import NamedTuple

from plm_jax.data.chunks import Chunk, Place, chunks_of
from plm_jax.data.corpora import Source, TextFiles
from plm_jax.data.text_parts import bytes_of_text
from plm_jax.data.tfds_text import TfdsText


class Shard(NamedTuple):
  """text: the shard as a text of its own. start: its place in the whole text. size: about its bytes
  of text; 0 if unknown."""

  text: Source
  start: Place
  size: int

  def chunks(self, size: int, place: Place | None = None) -> Iterator[Chunk]:
    """The chunks from a place on, by default from the start. Places are those of the whole text."""
    first = self.start
    here = place or first
    inside = here._replace(file=here.file - first.file, documents=here.documents - first.documents)
    for chunk in chunks_of(self.text, inside, size):
      after = chunk.after
      yield chunk._replace(
        after=after._replace(
          file=after.file + first.file, documents=after.documents + first.documents
        )
      )


def shards_of(source: Source) -> list[Shard]:
  """All shards, in the order of the text. Of several texts (`Joined`) one after the other, each
  with places of its own."""
  if texts := getattr(source, "texts", ()):
    return [shard for text in texts for shard in shards_of(text)]
  if isinstance(source, TextFiles):
    return [
      Shard(source._replace(files=(file,)), Place(number), bytes_of_text(file))
      for number, file in enumerate(source.files)
    ]
  if isinstance(source, TfdsText):
    return [Shard(text, Place(documents=text.first), size) for text, size in source.shards()]
  return [Shard(source, Place(), source.size)]
