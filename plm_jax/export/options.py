"""A checkpoint's `config.json`: every entry is read, known to change nothing, or refused by name.

Source: transformers 5.23, configuration_utils.py and the families' configuration files.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from plm_jax.errors import UserError

T = TypeVar("T")

# Entries that describe a checkpoint or its generation of text, and change no forward pass.
_SILENT = """
architectures model_type transformers_version torch_dtype dtype _name_or_path name_or_path id2label
label2id num_labels _num_labels problem_type use_cache return_dict torchscript output_hidden_states
output_attentions output_past gradient_checkpointing chunk_size_feed_forward pad_token_id
bos_token_id eos_token_id sep_token_id cls_token_id mask_token_id unk_token_id
decoder_start_token_id forced_bos_token_id forced_eos_token_id begin_suppress_tokens
suppress_tokens bad_words_ids task_specific_params tokenizer_class prefix finetuning_task language
_attn_implementation attn_implementation _attn_implementation_autoset tf_legacy_loss max_length
min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k
top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size num_return_sequences
encoder_no_repeat_ngram_size output_scores return_dict_in_generate remove_invalid_values
exponential_decay_length_penalty
_attn_implementation_internal _commit_hash auto_map is_llama_config model_max_length
sbert_ce_default_activation_function sentence_transformers tokenizer_name transformers.js_config
transformers_js_config unsloth_fixed unsloth_version xla_device
"""
SILENT = frozenset(_SILENT.split())
# Entries that would change the outputs with any other value.
PLAIN = {
  "pruned_heads": ({}, None),
  "use_bfloat16": (False,),
  "is_decoder": (False,),
  "add_cross_attention": (False,),
  "cross_attention_hidden_size": (None,),
  "position_embedding_type": ("absolute", None),
  "is_encoder_decoder": (False, None),
  "tie_encoder_decoder": (False, None),
  "rope_interleaved": (False, None),
}
# The types of options that may be absent.
KINDS: dict[str, type] = {
  "classifier_dropout": float,
  "head_dim": int,
  "n_inner": int,
  "num_decoder_layers": int,
  "num_key_value_heads": int,
  "rope_parameters": dict,
  "rope_scaling": dict,
}
_MOST = 2**31  # of a size: compilers cannot represent larger shapes
# transformers' name -> our activation; names of the same formula share one.
ACTIVATIONS = {
  "gelu": "gelu_erf",
  "gelu_python": "gelu_erf",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_accurate": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_python_tanh": "gelu_tanh",
  "gelu_10": "gelu_10",
  "quick_gelu": "quick_gelu",
  "relu": "relu",
  "relu2": "relu_squared",
  "relu6": "relu6",
  "leaky_relu": "leaky_relu",
  "silu": "silu",
  "swish": "silu",
  "hardswish": "hard_swish",
  "mish": "mish",
  "tanh": "tanh",
  "sigmoid": "sigmoid",
  "linear": "identity",
  "laplace": "laplace",
  "sqrtsoftplus": "sqrt_softplus",
}


class Options:
  """The entries of one config.json; `finish` refuses those that were not taken."""

  def __init__(self, document: dict[str, Any], where: str):
    self.document, self.where = document, where
    self._taken: set[str] = set()

  def take(self, name: str, default: T) -> T:
    """The entry, or transformers' default if it is absent. Errors: `UserError` for a value of
    another type than the default's, or than that of `KINDS` if the default is None."""
    self._taken.add(name)
    value = self.document.get(name, default)
    if value is None and default is None:
      return value
    kind = KINDS[name] if default is None else type(default)
    if kind is float and type(value) is int and abs(value) < _MOST:
      value = float(value)
    wrong = type(value) is not kind or (kind is int and abs(value) >= _MOST)
    if wrong or (kind is float and not math.isfinite(value)):
      example = "" if default is None else f" such as {default!r}"
      raise UserError(f"{self.where} sets {name}={value!r}; expected {_KIND[kind]}{example}.")
    return value

  def fixed(self, name: str, *accepted: Any) -> None:
    """Refuses any value that is not in `accepted`; the first is transformers' default."""
    self._taken.add(name)
    value = self.document.get(name, accepted[0])
    if value not in accepted:
      raise UserError(
        f"{self.where} sets {name}={value!r}, which this project does not support; it has "
        f"{name}={accepted[0]!r}."
      )

  def activation(self, name: str, default: str, known: Mapping[str, str] | None = None) -> str:
    """Our name for an activation; known: a family's own names."""
    value, known = self.take(name, default), known or ACTIVATIONS
    if value not in known:
      raise UserError(
        f"{self.where} sets {name}={value!r}, which this project does not support; it has "
        f"{', '.join(known)}."
      )
    return known[value]

  def labels(self, default: int = 2) -> int:
    """The number of labels of a classifier; default: transformers', if config.json has none."""
    names, count = self.document.get("id2label"), self.document.get("num_labels")
    known = isinstance(names, dict | None) and isinstance(count, int | None)
    if not known or not 0 <= (count or 0) < _MOST:
      raise UserError(f"{self.where} has an id2label or num_labels of a wrong type or value.")
    return count or len(names or {}) or default

  def finish(self, also_silent: Collection[str] = ()) -> None:
    """Errors: `UserError` naming an entry that was not taken and may change the outputs."""
    for name, accepted in PLAIN.items():
      if name in self.document and name not in self._taken:
        self.fixed(name, *accepted)
    self._check_ids()
    unknown = self.document.keys() - self._taken - SILENT - set(also_silent)
    if unknown:
      name = min(unknown)
      raise UserError(
        f"{self.where} sets {name}={self.document[name]!r}, which this project does not know; a "
        "model that ignored it might compute something else."
      )

  def _check_ids(self) -> None:
    """Errors: `UserError` for the id of a special token that no vocabulary has."""
    size = self.document.get("vocab_size", math.inf)
    for name, value in self.document.items():
      listed = value if isinstance(value, list) and name == "eos_token_id" else [value]
      if not name.endswith("_token_id") or value is None:
        continue
      if not listed or any(type(i) is not int or i < 0 for i in listed):
        raise UserError(f"{self.where} sets {name}={value!r}; expected an id from 0.")
      if name == "pad_token_id" and value >= size:
        raise UserError(f"{self.where} sets {name}={value}, and vocab_size={size}.")


def activation_name(ours: str, known: Mapping[str, str] | None = None) -> str:
  """transformers' name of our activation. Errors: `UserError` if a family lacks it."""
  names = [theirs for theirs, name in (known or ACTIVATIONS).items() if name == ours]
  if not names:
    raise UserError(f"model.activation={ours} cannot be exported: this family lacks it.")
  return names[0]


_KIND: dict[type, str] = {
  bool: "true or false",
  int: "a whole number",
  float: "a number",
  str: "a text",
  dict: "an object",
}
