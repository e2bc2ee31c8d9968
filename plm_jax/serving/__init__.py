"""A server for models: HTTP routes, batches of requests, and a page. `python -m plm_jax.serve`."""
