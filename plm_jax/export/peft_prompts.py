"""Prompts and prefixes in the files of Hugging Face PEFT (0.21.2, peft_model.py `get_prompt`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import numpy as np

from plm_jax.errors import UserError
from plm_jax.export.options import Options
from plm_jax.export.peft_modules import as_arrays, refuse_shape
from plm_jax.export.pretrained import Pretrained
from plm_jax.models.attention import Attention
from plm_jax.models.encoder import Encoder
from plm_jax.peft import adapted
from plm_jax.peft.prefix import Prefix
from plm_jax.peft.prompt import Prompt

PROMPT = "prompt_embeddings"
# The sizes of the base, and how the vectors were made.
SIZES = (
  *("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"),
  *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
  *("encoder_hidden_size", "prefix_projection", "init_weights"),
)


def _prompt_of(options: Options, tensors: dict, width: int) -> np.ndarray:
  """The stored vectors `[P, width]`; an encoder-decoder's file may repeat them."""
  length = options.take("num_virtual_tokens", 0)
  for name in SIZES:
    options.fixed(name, options.document.get(name))
  if PROMPT not in tensors:
    raise UserError(f"{options.where} describes a prompt, and its file has no {PROMPT}.")
  array = tensors.pop(PROMPT)
  refuse_shape(PROMPT, array, None, width)
  if len(array) not in (length, 2 * length):
    raise UserError(f"{options.where} sets num_virtual_tokens={length}, and has {len(array)} rows.")
  return array[:length]


def read_prompt(options: Options, tensors: dict, base: Pretrained):
  peft = Prompt(reads="prompt" if _reads_first(base) else "text")
  ((path, arrays),) = jax.eval_shape(peft.init, jax.random.key(0), base.params).items()
  array = _prompt_of(options, tensors, arrays["prompt_table"].shape[1])
  peft = dataclasses.replace(peft, length=len(array))
  return peft, as_arrays({path: {"prompt_table": array}}), tensors


def _reads_first(base: Pretrained) -> bool:
  """Whether classes are read from the first token, which in peft is the prompt's."""
  return isinstance(base.config, Encoder) and "classes" in base.heads


def write_prompt(prompt: Prompt, added: Mapping, base: Pretrained) -> tuple[dict, dict]:
  if prompt.reads == "text" and _reads_first(base):
    raise UserError(
      "peft reads the classes from the first token of the prompt, and this adapter was trained to "
      "read them from the text; train with --set=peft.reads=prompt to write it for peft"
    )
  ((_, arrays),) = added.items()
  array = np.asarray(arrays["prompt_table"])
  document = {"peft_type": "PROMPT_TUNING", "num_transformer_submodules": 1, "num_layers": 1}
  document |= {"num_virtual_tokens": len(array), "token_dim": array.shape[1]}
  return document | {"num_attention_heads": base.config.heads}, {PROMPT: array}


def _own_attention(base: Pretrained) -> str:
  """The path of the attention that has peft's prefix."""
  return ("decoder_stack/" if hasattr(base.config, "source_ids") else "") + "blocks/attention"


def read_prefix(options: Options, tensors: dict, base: Pretrained):
  path = _own_attention(base)
  kernel = adapted.modules(base.params, Attention)[path].key.kernel
  layers, width = kernel.shape[0], math.prod(kernel.shape[-2:])
  array = _prompt_of(options, tensors, layers * 2 * width)
  both = array.reshape(len(array), layers, 2, width).transpose(2, 1, 0, 3)
  peft = Prefix(length=len(array), targets=(path,))
  return peft, as_arrays({path: {"prefix_keys": both[0], "prefix_values": both[1]}}), tensors


def write_prefix(prefix: Prefix, added: Mapping, base: Pretrained) -> tuple[dict, dict]:
  pairs, path = prefix.key_values(added), _own_attention(base)
  if set(pairs) != {path}:
    raise UserError(
      f"peft has a prefix in {path} only, and this adapter in {', '.join(pairs)}; train with "
      f"--set=peft.targets={path} to write it for peft"
    )
  both = np.stack([np.asarray(x) for x in pairs[path]])
  _, layers, length, width = both.shape
  array = both.transpose(2, 1, 0, 3).reshape(length, -1)
  heads = adapted.modules(base.params, Attention)[path].key.kernel.shape[-2]
  return {
    "peft_type": "PREFIX_TUNING",
    "num_virtual_tokens": length,
    "token_dim": width,
    "num_layers": layers,
    "num_attention_heads": heads,
    "num_transformer_submodules": 2 if hasattr(base.config, "source_ids") else 1,
    "prefix_projection": False,
  }, {PROMPT: array}
