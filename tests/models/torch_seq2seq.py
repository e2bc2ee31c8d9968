"""Weights of transformers' encoder-decoders under our parameter names, for tests of parity."""

import numpy as np

from tests.models.torch_encoder import filled

BART_LAYER = {
  "attention/query": "self_attn.q_proj",
  "attention/key": "self_attn.k_proj",
  "attention/value": "self_attn.v_proj",
  "attention/output": "self_attn.out_proj",
  "attention_norm": "self_attn_layer_norm",
  "cross/query": "encoder_attn.q_proj",
  "cross/key": "encoder_attn.k_proj",
  "cross/value": "encoder_attn.v_proj",
  "cross/output": "encoder_attn.out_proj",
  "cross_norm": "encoder_attn_layer_norm",
  "feed_forward/up": "fc1",
  "feed_forward/down": "fc2",
  "feed_forward_norm": "final_layer_norm",
}
T5_ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}


def t5_layer(cross: bool, gated: bool) -> dict[str, str]:
  """Ours -> theirs within a block."""
  attention, feed_forward = ("layer.0.SelfAttention", "attention"), f"layer.{1 + cross}"
  names = {f"{attention[1]}/{a}": f"{attention[0]}.{b}" for a, b in T5_ATTENTION.items()}
  names |= {"attention_norm": "layer.0.layer_norm"}
  if cross:
    names |= {f"cross/{a}": f"layer.1.EncDecAttention.{b}" for a, b in T5_ATTENTION.items()}
    names |= {"cross_norm": "layer.1.layer_norm"}
  dense = f"{feed_forward}.DenseReluDense"
  ups = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
  names |= {f"feed_forward/{a}": f"{dense}.{b}" for a, b in {**ups, "down": "wo"}.items()}
  return names | {"feed_forward_norm": f"{feed_forward}.layer_norm"}


def blocks(get, layer: str, layers: int, heads: int, names: dict[str, str]) -> dict:
  """{path under `blocks`: stacked array}; biases where there are any."""
  arrays = {}
  for ours, theirs in names.items():
    kernel = np.stack([get(f"{layer.format(i)}.{theirs}.weight") for i in range(layers)])
    bias = [get(f"{layer.format(i)}.{theirs}.bias") for i in range(layers)]
    last = ours.split("/")[-1]
    if not ours.endswith("norm"):
      kernel = kernel.swapaxes(1, 2)
    if last in ("query", "key", "value"):
      kernel = kernel.reshape(*kernel.shape[:2], heads, -1)
    if last == "output":
      kernel = kernel.reshape(layers, heads, -1, kernel.shape[-1])
    arrays[f"{ours}/{'gain' if ours.endswith('norm') else 'kernel'}"] = kernel
    if bias[0] is not None:
      bias = np.stack(bias)
      shaped = last in ("query", "key", "value")
      arrays[f"{ours}/bias"] = bias.reshape(layers, heads, -1) if shaped else bias
  return {f"blocks/{name}": array for name, array in arrays.items()}


def getter(model):
  state = {name: array.detach().numpy() for name, array in model.state_dict().items()}
  return state.get


def t5_parameters(ours, theirs):
  """Our parameters with the numbers of a T5ForConditionalGeneration."""
  get, c = getter(theirs), theirs.config
  arrays = {"token/table": get("shared.weight")}
  for side, cross, layers in (("encoder", False, c.num_layers), ("decoder", True, 0)):
    layers = layers or c.num_decoder_layers
    names = t5_layer(cross, c.is_gated_act)
    found = blocks(get, f"{side}.block.{{}}", layers, c.num_heads, names)
    first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    found |= {"bias/relative/table": get(first)}
    found |= {"norm/gain": get(f"{side}.final_layer_norm.weight")}
    arrays |= {f"{side}_stack/{name}": array for name, array in found.items()}
  if ours.lm is not None:
    arrays["lm/table"] = get("lm_head.weight")
  return filled(ours, arrays)


def bart_parameters(ours, theirs):
  """Our parameters with the numbers of a Bart-, MBart- or MarianForConditionalGeneration."""
  get, c = getter(theirs), theirs.config
  arrays = {"token/table": get("model.shared.weight")}
  for side in ("encoder", "decoder"):
    layers = getattr(c, f"{side}_layers")
    heads = getattr(c, f"{side}_attention_heads")
    names = {k: v for k, v in BART_LAYER.items() if side == "decoder" or "cross" not in k}
    found = blocks(get, f"model.{side}.layers.{{}}", layers, heads, names)
    norms = {"embed_norm": "layernorm_embedding", "norm": "layer_norm"}
    for mine, name in norms.items():
      if (gain := get(f"model.{side}.{name}.weight")) is not None:
        found |= {f"{mine}/gain": gain, f"{mine}/bias": get(f"model.{side}.{name}.bias")}
    if c.model_type != "marian":
      found |= {"position/table": get(f"model.{side}.embed_positions.weight")}
    arrays |= {f"{side}_stack/{name}": array for name, array in found.items()}
  return filled(ours, arrays)
