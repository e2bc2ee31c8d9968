"""GPT-2 in PyTorch in the manner of nanoGPT (Karpathy, model.py): queries, keys and values by one
product, `scaled_dot_product_attention(is_causal=True)`, a tied table, logits at every position.
Deviation: the GELU is the tanh one, GPT-2's own and ours."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
  def __init__(self, width: int, heads: int, dropout: float):
    super().__init__()
    self.heads, self.dropout = heads, dropout
    self.attention_norm = nn.LayerNorm(width)
    self.qkv = nn.Linear(width, 3 * width)
    self.output = nn.Linear(width, width)
    self.feed_forward_norm = nn.LayerNorm(width)
    self.up = nn.Linear(width, 4 * width)
    self.down = nn.Linear(4 * width, width)

  def forward(self, x):
    x = x + self.dropped(self.output(self.attend(self.qkv(self.attention_norm(x)))))
    hidden = functional.gelu(self.up(self.feed_forward_norm(x)), approximate="tanh")
    return x + self.dropped(self.down(hidden))

  def attend(self, qkv):
    batch, positions, _ = qkv.shape
    split = qkv.view(batch, positions, 3, self.heads, -1)
    q, k, v = split.permute(2, 0, 3, 1, 4)
    rate = self.dropout if self.training else 0.0
    y = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
    return y.transpose(1, 2).reshape(batch, positions, -1)

  def dropped(self, x):
    return functional.dropout(x, self.dropout, self.training)


class Gpt(nn.Module):
  """The mean cross-entropy of `targets`, int `[B, T]`."""

  def __init__(
    self, layers: int, width: int, heads: int, vocab: int, positions: int, dropout: float
  ):
    super().__init__()
    self.dropout = dropout
    self.token = nn.Embedding(vocab, width)
    self.position = nn.Embedding(positions, width)
    self.blocks = nn.ModuleList([Block(width, heads, dropout) for _ in range(layers)])
    self.norm = nn.LayerNorm(width)
    for name, parameter in self.named_parameters():
      if parameter.ndim > 1:
        small = name.endswith(("output.weight", "down.weight"))
        nn.init.normal_(parameter, std=0.02 * (2 * layers) ** -0.5 if small else 0.02)

  def forward(self, ids, targets):
    x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
    x = functional.dropout(x, self.dropout, self.training)
    for block in self.blocks:
      x = block(x)
    logits = functional.linear(self.norm(x), self.token.weight)
    return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
