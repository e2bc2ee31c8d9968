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
from plm_jax.serving import server_flags
from plm_jax.train.process import keep_compilations

FLAGS = flags.FLAGS


def define_flags() -> None:
  server_flags.define_flags()
  flags.adopt_module_key_flags(server_flags)
  flags.DEFINE_string("host", "127.0.0.1", "The address to listen at; 0.0.0.0 is all of them.")
  flags.DEFINE_integer("port", 8000, "0 takes a free one.", lower_bound=0, upper_bound=65535)


def main() -> None:
  if not FLAGS.model:
    raise UserError("--model=DIR, the directory of a model, is needed.")
  try:
    from plm_jax.serving.server import serve
  except ImportError as error:
    raise UserError(
      f"the server needs {error.name}, which is not installed: pip install 'plm_jax[serve]'."
    ) from None
  keep_compilations(default_cache())
  limits = server_flags.limits_of(FLAGS)
  serve(FLAGS.model, FLAGS.host, FLAGS.port, limits, FLAGS.grace)


if __name__ == "__main__":
  cli.run(main)
