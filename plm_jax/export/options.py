"""A checkpoint's `config.json`, of which every entry is either read, or known to change nothing, or
refused by name.

Source: transformers 5.23, configuration_utils.py and the families' configuration files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from plm_jax.errors import UserError

T = TypeVar("T")

# What describes a checkpoint, or how text is made with it, and no number of a forward pass.
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
"""
SILENT = frozenset(_SILENT.split())
# What would change numbers if it were set to anything else.
PLAIN = {
  "pruned_heads": ({}, None),
  "use_bfloat16": (False,),
  "is_decoder": (False,),
  "add_cross_attention": (False,),
  "cross_attention_hidden_size": (None,),
  "position_embedding_type": ("absolute", None),
}
# What an option is that may be left out, where it is given.
KINDS: dict[str, type] = {
  "classifier_dropout": float,
  "head_dim": int,
  "n_inner": int,
  "num_decoder_layers": int,
  "num_key_value_heads": int,
  "rope_parameters": dict,
  "rope_scaling": dict,
}
_MOST = 2**31  # of a size: beyond it shapes are no numbers to compilers
# transformers' names for the activations of ours; those of one formula share a name here.
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
  """The entries of one config.json; `finish` refuses those that nothing has asked for."""

  def __init__(self, document: dict[str, Any], where: str):
    self.document, self.where = document, where
    self._taken: set[str] = set()

  def take(self, name: str, default: T) -> T:
    """The entry, or transformers' default where it is not given. Errors: `UserError` for a value of
    another type than the default's, or than `KINDS` has where that is None."""
    self._taken.add(name)
    value = self.document.get(name, default)
    if value is None and default is None:
      return value
    kind = KINDS[name] if default is None else type(default)
    if kind is float and type(value) is int and abs(value) < _MOST:
      value = float(value)
    if type(value) is not kind or (kind is int and abs(value) >= _MOST):
      example = "" if default is None else f" such as {default!r}"
      raise UserError(f"{self.where} sets {name}={value!r}; expected {_KIND[kind]}{example}.")
    return value

  def fixed(self, name: str, *accepted: Any) -> None:
    """Refuses any other value than those accepted; the first is transformers' default."""
    self._taken.add(name)
    value = self.document.get(name, accepted[0])
    if value not in accepted:
      raise UserError(
        f"{self.where} sets {name}={value!r}, which this project does not support; it has "
        f"{name}={accepted[0]!r}."
      )

  def activation(self, name: str, default: str, known: Mapping[str, str] | None = None) -> str:
    """Our name for an activation; known: a family's own names."""
    given, known = self.take(name, default), known or ACTIVATIONS
    if given not in known:
      raise UserError(
        f"{self.where} sets {name}={given!r}, which this project does not support; it has "
        f"{', '.join(known)}."
      )
    return known[given]

  def labels(self, default: int = 2) -> int:
    """How many labels a classification has; default: of transformers, where nothing is said."""
    names, count = self.document.get("id2label"), self.document.get("num_labels")
    known = isinstance(names, dict | None) and isinstance(count, int | None)
    if not known or not 0 <= (count or 0) < _MOST:
      raise UserError(f"{self.where} has id2label or num_labels of another kind than expected.")
    return count or len(names or {}) or default

  def finish(self, also_silent: Collection[str] = ()) -> None:
    """Errors: `UserError` naming an entry that was not taken and is not known to be silent."""
    for name, accepted in PLAIN.items():
      if name in self.document and name not in self._taken:
        self.fixed(name, *accepted)
    unknown = self.document.keys() - self._taken - SILENT - set(also_silent)
    if unknown:
      name = min(unknown)
      raise UserError(
        f"{self.where} sets {name}={self.document[name]!r}, which this project does not know; a "
        "model that ignored it might compute something else."
      )


def activation_name(ours: str, known: Mapping[str, str] | None = None) -> str:
  """transformers' name for an activation of ours. Errors: `UserError` where a family lacks it."""
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
