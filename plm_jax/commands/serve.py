"""Serves models over HTTP, with a page to try them: predictions, vectors, blanks, texts.

  python -m plm_jax.serve --model=DIR
  python -m plm_jax.serve --model=runs/gpt_tiny,reviews=RUN/finetune/TASK/pretrained-all-0
  PLM_JAX_API_KEY=secret python -m plm_jax.serve --model=DIR --host=0.0.0.0

DIR is a run, a fine-tuned run or a published model; NAME=DIR gives it a name. Everything is loaded
and compiled before the port is open. docs/serving.md describes the routes; /docs lists them. The
packages are an extra: pip install 'plm_jax[serve]'.
"""

from absl import flags

from plm_jax import cli
from plm_jax.data.corpora import default_cache
from plm_jax.errors import UserError
from plm_jax.serving.limits import Limits
from plm_jax.train.process import keep_compilations, keep_freed_memory

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_list("model", [], "Directories, each with a name in front if you like: NAME=DIR.")
  flags.DEFINE_string("host", "127.0.0.1", "The address to listen at; 0.0.0.0 is all of them.")
  flags.DEFINE_integer("port", 8000, "0 takes a free one.", lower_bound=0, upper_bound=65535)
  flags.DEFINE_integer("batch", 16, "Texts computed together at most.", lower_bound=1,
                       upper_bound=256)  # fmt: skip
  flags.DEFINE_float("wait_ms", 2.0, "A request waits this long for others.", lower_bound=0,
                     upper_bound=1000)  # fmt: skip
  flags.DEFINE_integer("slots", 8, "Texts that are generated at a time.", lower_bound=1,
                       upper_bound=256)  # fmt: skip
  flags.DEFINE_integer("queue", 256, "Texts that wait for a model; more are refused with 429.",
                       lower_bound=1)  # fmt: skip
  flags.DEFINE_integer("max_texts", 64, "Texts in a request.", lower_bound=1)
  flags.DEFINE_integer("max_tokens", 512, "Tokens of a text, and new ones of a generated text.",
                       lower_bound=8)  # fmt: skip
  flags.DEFINE_integer("max_body", 1 << 20, "Bytes of a request.", lower_bound=1)
  flags.DEFINE_float("timeout", 30.0, "Seconds for a request.", lower_bound=0.1)
  flags.DEFINE_float("grace", 10.0, "Seconds for the requests in flight after SIGTERM.",
                     lower_bound=1)  # fmt: skip


def main() -> None:
  if not FLAGS.model:
    raise UserError("--model=DIR, the directory of a model, is needed.")
  try:
    from plm_jax.serving.server import serve
  except ImportError as error:
    raise UserError(
      f"the server needs {error.name}, which is not installed: pip install 'plm_jax[serve]'."
    ) from None
  keep_freed_memory()
  keep_compilations(default_cache())
  limits = Limits(
    batch=FLAGS.batch,
    wait=FLAGS.wait_ms / 1000,
    slots=FLAGS.slots,
    queue=FLAGS.queue,
    texts=FLAGS.max_texts,
    timeout=FLAGS.timeout,
    body=FLAGS.max_body,
    tokens=FLAGS.max_tokens,
  )
  serve(FLAGS.model, FLAGS.host, FLAGS.port, limits, FLAGS.grace)


if __name__ == "__main__":
  cli.run(main)
