"""The heads that fine-tuning trains: the same for encoders, decoders and encoder-decoders."""

from collections.abc import Collection, Mapping, Sequence

import jax

from plm_jax.export.names import Entry, linear
from plm_jax.models.heads import TUNED, Labels
from plm_jax.models.model import Parameters

SIZED = tuple(name for name, head in TUNED.items() if head is Labels)


def named(**architectures: str) -> dict[str, frozenset[str]]:
  """{class of transformers: our heads}, from strings of heads separated by spaces."""
  return {name: frozenset(heads.split()) for name, heads in architectures.items()}


def labelled(names: Sequence[str]) -> dict[str, dict]:
  """The entries of config.json for the names of labels, in the order of their numbers."""
  return {
    "id2label": {str(number): name for number, name in enumerate(names)},
    "label2id": {name: number for number, name in enumerate(names)},
  }


def rate_before_classes(config) -> float:
  """The dropout before the head `classes`."""
  return config.dropout if config.classifier_dropout is None else config.classifier_dropout


def size_of(params: Parameters, head: str) -> int:
  """The number of labels of a model's head; 0 for a head without labels."""
  return getattr(params, head).kernel.shape[-1] if head in SIZED else 0


def tuned_heads(params: Parameters) -> dict[str, int]:
  """The heads of `TUNED` that a model has, with their sizes."""
  return {head: size_of(params, head) for head in TUNED if getattr(params, head) is not None}


def tuned_outputs(params: Parameters, hidden: jax.Array, batch: dict) -> dict[str, jax.Array]:
  """Outputs of these heads by transformers' names, float32: `[B, labels]` for rows,
  `[B, T, labels]` for tokens, `[B, T]` each for the start and the end of an answer."""
  outputs = {}
  if params.classes is not None:
    outputs["logits"] = params.class_logits(hidden, batch, None)
  if params.token_classes is not None:
    outputs["logits"] = params.token_class_logits(hidden, batch, None)
  if params.span is not None:
    outputs |= dict(zip(("start_logits", "end_logits"), params.span_logits(hidden, batch)))
  return outputs


def tuned_entries(top: Mapping[str, str], heads: Collection[str]) -> list[Entry]:
  """The names of the linear maps; top: head -> transformers' name."""
  return [entry for head, theirs in top.items() if head in heads for entry in linear(head, theirs)]
