"""The flags of a server that `python -m plm_jax.serve` and Ray Serve have in common."""

from __future__ import annotations

from absl import flags

from plm_jax.serving.limits import Limits


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """Adds them to `values`."""
  own = {"flag_values": values}
  flags.DEFINE_list("model", [], "Directories, each with a name in front if you like: NAME=DIR.",
                    **own)  # fmt: skip
  flags.DEFINE_integer("batch", 16, "Texts computed together at most.", lower_bound=1,
                       upper_bound=256, **own)  # fmt: skip
  flags.DEFINE_float("wait_ms", 2.0, "A request waits this long for others.", lower_bound=0,
                     upper_bound=1000, **own)  # fmt: skip
  flags.DEFINE_integer("slots", 8, "Texts that are generated at a time.", lower_bound=1,
                       upper_bound=256, **own)  # fmt: skip
  flags.DEFINE_integer("queue", 256, "Texts that wait for a model; more are refused with 429.",
                       lower_bound=1, **own)  # fmt: skip
  flags.DEFINE_integer("max_texts", 64, "Texts in a request.", lower_bound=1, **own)
  flags.DEFINE_integer("max_tokens", 512, "Tokens of a text, and new ones of a generated text.",
                       lower_bound=8, **own)  # fmt: skip
  flags.DEFINE_integer("max_body", 1 << 20, "Bytes of a request.", lower_bound=1, **own)
  flags.DEFINE_float("timeout", 30.0, "Seconds to read a request, and to answer it.",
                     lower_bound=0.1, **own)  # fmt: skip
  flags.DEFINE_float("grace", 10.0, "Seconds for the requests in flight after SIGTERM.",
                     lower_bound=1, **own)  # fmt: skip


def limits_of(values: flags.FlagValues) -> Limits:
  return Limits(
    batch=values.batch,
    wait=values.wait_ms / 1000,
    slots=values.slots,
    queue=values.queue,
    texts=values.max_texts,
    timeout=values.timeout,
    body=values.max_body,
    tokens=values.max_tokens,
  )
