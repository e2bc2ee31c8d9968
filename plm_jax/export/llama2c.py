"""Checkpoints of llama2.c: one file of seven whole numbers and then float32 weights.

Source: karpathy/llama2.c, run.c `memory_map_weights` (the format that its README calls legacy) and
export.py. Its heads rotate the pairs (2i, 2i + 1); here and in transformers the pairs are
(i, i + H / 2), so the rows of queries and keys are reordered.
"""

import itertools
import math
import struct
from pathlib import Path

import jax
import numpy as np

from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.families.llama import FAMILY
from plm_jax.export.names import to_ours, under
from plm_jax.export.tensors import check_finite
from plm_jax.files import read_bytes
from plm_jax.models.llama import Llama

MOST_BYTES = 1 << 40
HEADER = struct.Struct("<7i")
LAYER = {
  "input_layernorm": None,
  "self_attn.q_proj": "heads",
  "self_attn.k_proj": "kv_heads",
  "self_attn.v_proj": None,
  "self_attn.o_proj": None,
  "post_attention_layernorm": None,
  "mlp.gate_proj": None,
  "mlp.down_proj": None,
  "mlp.up_proj": None,
}


def load(file: str | Path) -> hf.Pretrained:
  """The model in a .bin file. Errors: `UserError` if its length does not match its header."""
  file = Path(file)
  data = read_bytes(file, MOST_BYTES)
  if len(data) < HEADER.size:
    raise UserError(f"{file} is not a llama2.c file: it has {len(data)} bytes, less than a header.")
  width, hidden, layers, heads, kv_heads, vocab, positions = HEADER.unpack_from(data)
  tied, vocab = vocab > 0, abs(vocab)
  sizes = (width, hidden, layers, heads, kv_heads, vocab, positions)
  if min(sizes) < 1 or max(sizes) > 2**24 or width % heads or heads % kv_heads:
    raise UserError(f"{file} is not a llama2.c file: its header is {HEADER.unpack_from(data)}.")
  config = Llama(
    layers=layers,
    width=width,
    heads=heads,
    kv_heads=None if kv_heads == heads else kv_heads,
    hidden=hidden,
    vocab_size=vocab,
    positions=positions,
    norm_eps=1e-5,
    tied=tied,
  )
  shapes = _shapes(config)
  expected = HEADER.size + 4 * sum(math.prod(shape) for shape in shapes.values())
  if len(data) != expected:
    raise UserError(
      f"{file} has {len(data)} bytes, but its header needs {expected}; fetch it again."
    )
  tensors = _tensors(np.frombuffer(data, "<f4", offset=HEADER.size), shapes, config)
  check_finite(tensors, file)
  model = jax.eval_shape(lambda key: config.init(key, {"lm": 0}), jax.random.key(0))
  entries = [*under(FAMILY.base, FAMILY.body(config)), *FAMILY.head(config, {"lm"})]
  params = to_ours(entries, model, tensors, str(file))
  document = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}
  return hf.Pretrained(config, params, "LlamaForCausalLM", document)


def _shapes(c: Llama) -> dict[str, tuple[int, ...]]:
  """The arrays of a file in its order; each array of a layer is stored for all layers together."""
  head = c.width // c.heads
  kv = (c.kv_heads or c.heads) * head
  layer = (
    *((c.width,), (c.width, c.width), (kv, c.width), (kv, c.width), (c.width, c.width), (c.width,)),
    *((c.hidden, c.width), (c.width, c.hidden), (c.hidden, c.width)),
  )
  shapes = {"embed_tokens": (c.vocab_size, c.width)}
  shapes |= {name: (c.layers, *shape) for name, shape in zip(LAYER, layer, strict=True)}
  shapes |= {"norm": (c.width,), "angles": (2, c.positions, head // 2)}
  return shapes | ({} if c.tied else {"lm_head": (c.vocab_size, c.width)})


def _tensors(numbers: np.ndarray, shapes: dict, c: Llama) -> dict[str, np.ndarray]:
  """{transformers' name: tensor}; the angles are dropped, since they are recomputed."""
  ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
  parts = np.split(numbers, ends[:-1])
  arrays = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts)}
  tensors = {
    "model.embed_tokens.weight": arrays["embed_tokens"],
    "model.norm.weight": arrays["norm"],
  }
  for (name, heads), layer in itertools.product(LAYER.items(), range(c.layers)):
    array = arrays[name][layer]
    if heads is not None:
      rows = array.reshape(getattr(c, heads) or c.heads, -1, 2, c.width)
      array = rows.swapaxes(1, 2).reshape(array.shape)
    tensors[f"model.layers.{layer}.{name}.weight"] = array
  return tensors | ({} if c.tied else {"lm_head.weight": arrays["lm_head"]})
