"""The base class of families of encoder-decoders: inputs, outputs and names."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from plm_jax.errors import UserError
from plm_jax.export.family import Family, Published
from plm_jax.export.heads import tuned_entries, tuned_heads, tuned_outputs
from plm_jax.export.names import Entry, linear
from plm_jax.models.compute import Compute
from plm_jax.models.encoder_decoder import EncoderDecoder, EncoderDecoderModel

SOURCE = ("input_ids", "attention_mask")


class Seq2SeqFamily(Family):
  """A model with a head, or bare; with tied tables only the architecture tells which.

  alone: classes of the encoder without a decoder. shifts: classes whose decoder reads `start`, then
  the source, if it has no inputs.
  """

  config: type[EncoderDecoder]
  alone: tuple[str, ...] = ()
  shifts: tuple[str, ...]

  # --- names

  def fits(self, config: EncoderDecoder, architecture: str) -> bool:
    return (config.arrangement == "encoder") == (architecture in self.alone)

  def check_always(self, config: EncoderDecoder) -> None:
    """A `UserError` for a field that differs from `always`."""
    for field, needed in self.always.items():
      if field == "arrangement" and self.alone and config.arrangement == "encoder":
        continue
      if getattr(config, field) != needed:
        raise self.never(field, getattr(config, field), needed)

  def head(self, config: EncoderDecoder, heads: Collection[str]) -> list[Entry]:
    entries = [Entry("lm/table", "lm_head.weight")] if "lm" in heads and not config.tied else []
    if "classes" in heads:
      entries += linear("pooler", "classification_head.dense")
      entries += linear("classes", "classification_head.out_proj")
    return entries + tuned_entries({"token_classes": "classifier", "span": "qa_outputs"}, heads)

  # --- numbers

  def heads_of(
    self, params: EncoderDecoderModel, architecture: str | None = None
  ) -> dict[str, int]:
    if heads := tuned_heads(params):
      return heads
    if params.config.arrangement == "encoder":
      return {}
    return {"lm": 0} if architecture is None or self.architectures[architecture] else {}

  def inputs_of(self, config: EncoderDecoder) -> tuple[str, ...]:
    alone = config.arrangement == "encoder"
    return SOURCE if alone else (*SOURCE, *(f"decoder_{name}" for name in SOURCE))

  def limits(self, config: EncoderDecoder) -> dict[str, int]:
    return {"input_ids": config.vocab_size, "decoder_input_ids": config.vocab_size}

  def batch(self, model: Published, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    config, document = model.config, model.document
    ids = inputs["input_ids"]
    batch = inputs | {"length": inputs["attention_mask"].sum(axis=1, dtype=np.int32)}
    if config.arrangement == "encoder":
      return batch
    if "decoder_input_ids" not in inputs:
      if model.architecture not in self.shifts:
        raise UserError("decoder_input_ids is missing; give the decoder's tokens so far.")
      start = self.start(ids, document)
      if np.min(start) < 0 or np.max(start) >= config.vocab_size:
        raise UserError(
          f"config.json lets the decoder begin with {np.max(start)}; the model has "
          f"{config.vocab_size} tokens."
        )
      batch["decoder_input_ids"] = np.concatenate([start, ids[:, :-1]], axis=1, dtype=np.int32)
    if "classes" in model.heads:
      batch["decoder_length"] = self.ends(ids, batch["decoder_input_ids"], document)
    return batch

  def special(self, name: str, document: Mapping[str, Any]) -> int:
    """The id of a special token. Errors: `UserError` if config.json has something else there."""
    value = document.get(name)
    value = self.ids.get(name) if value is None else value
    if type(value) is not int:
      raise UserError(f"config.json sets {name}={value!r}; expected the id of one token.")
    return value

  def start(self, ids_BS: np.ndarray, document: Mapping[str, Any]) -> np.ndarray:
    """int `[B, 1]`: the decoder's first token, before the source."""
    return np.full((len(ids_BS), 1), self.special("decoder_start_token_id", document), np.int32)

  def ends(self, ids_BS: np.ndarray, decoder_BT: np.ndarray, document: Mapping[str, Any]):
    """int32 `[B]`: the position of a row's last end token, counted from 1, where its classes are
    read. Errors: `UserError` if transformers could not find it either."""
    eos = self.special("eos_token_id", document)
    is_end = ids_BS == eos
    counts = np.unique(is_end.sum(axis=1)).tolist()
    if len(counts) > 1 or 0 in counts:
      raise UserError(
        f"the classes are read at the last {eos} of a row (eos_token_id), and all rows must have "
        f"the same number of them, at least one; there are rows with {', '.join(map(str, counts))}."
      )
    if decoder_BT.shape != ids_BS.shape:
      raise UserError(
        f"decoder_input_ids has the shape {list(decoder_BT.shape)} and input_ids "
        f"{list(ids_BS.shape)}; for classes they must be the same."
      )
    columns = np.arange(1, ids_BS.shape[1] + 1, dtype=np.int32)
    return (columns * is_end).max(axis=1)

  def run(
    self, params: EncoderDecoderModel, batch: dict[str, Any], compute: Compute, architecture: str
  ) -> dict[str, jax.Array]:
    hidden = params(batch, compute)
    outputs = tuned_outputs(params, hidden, batch)
    if "lm" in self.heads_of(params, architecture):
      outputs["logits"] = params.token_logits(hidden)
    outputs = outputs or {"last_hidden_state": hidden}
    if params.config.arrangement == "encoder":
      return outputs
    # The compiler merges this with the same computation in `params`.
    return outputs | {"encoder_last_hidden_state": params.encode(batch, compute)}
