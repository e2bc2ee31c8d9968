"""A text that a model writes, to be looked at."""

from plm_jax.decode.rules import Rules
from plm_jax.decode.writer import continuation, encode_prompts, write
from plm_jax.errors import UserError
from plm_jax.runs import Run, check_predicts_tokens

RULES = Rules(temperature=0.7, max_length=40)


def written(run: Run, prompt: str) -> str | None:
  """A text that the model writes after `prompt`, an encoder-decoder from it; None if it cannot."""
  try:
    encoded = encode_prompts(run.params, run.config, run.tokenizer, [prompt])
    check_predicts_tokens(run)
    model = run.params, run.config, run.tokenizer, run.compute
    text = continuation(run.tokenizer, encoded[0], write(*model, encoded, RULES)[0][0].ids)
  except (UserError, AttributeError):
    return None
  return text if encoded[0].source is not None else prompt + text
