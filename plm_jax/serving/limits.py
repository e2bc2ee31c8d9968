"""The limits of a server, and the refusals that tell a client of them."""

from __future__ import annotations

import dataclasses


class Refused(Exception):
  """An answer that is an error. status: of HTTP. Its text is one sentence for the client."""

  def __init__(self, status: int, sentence: str):
    super().__init__(sentence)
    self.status, self.sentence = status, sentence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """batch: most texts of a batch. wait: seconds that a request waits for others. slots: texts that
  grow at a time. queue: texts that wait, of a model. texts: of one request. timeout: seconds for
  reading a request and for answering it. body: bytes of a request. tokens: of a text, and new ones
  of a generated text."""

  batch: int = 16
  wait: float = 0.002
  slots: int = 8
  queue: int = 256
  texts: int = 64
  timeout: float = 30.0
  body: int = 1 << 20
  tokens: int = 512

  def check_text(self, text: str) -> None:
    """Errors: `Refused` for a text that no tokenizer needs to see. A token of a word has rarely
    more than 32 characters."""
    if len(text) > 32 * self.tokens:
      raise Refused(
        413,
        f"a text has {len(text):,} characters; this server reads {self.tokens:,} tokens at most, "
        f"and no text of more than {32 * self.tokens:,} characters. Send a shorter text",
      )

  def check_tokens(self, tokens: int) -> None:
    """Errors: `Refused` for more tokens than a text may have."""
    if tokens > self.tokens:
      raise Refused(
        413,
        f"a text has {tokens:,} tokens and this server reads {self.tokens:,} at most; send a "
        "shorter text",
      )

  def check_texts(self, texts: int) -> None:
    """Errors: `Refused` for no texts, or too many."""
    if not 1 <= texts <= self.texts:
      raise Refused(422, f"{texts} texts were sent; expected from 1 to {self.texts} in a request")
