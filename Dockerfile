# A server for the models in /models: docker build -t plm_jax . (docs/serving.md)
FROM python:3.12-slim

RUN useradd --create-home serve
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY plm_jax plm_jax
COPY experiments experiments
RUN pip install --no-cache-dir --editable '.[serve]'

USER serve
# Compiled programs: keep this folder in a volume, and the next start needs seconds.
ENV PLM_JAX_CACHE=/home/serve/cache
VOLUME ["/models", "/home/serve/cache"]
EXPOSE 8000
HEALTHCHECK --start-period=5m CMD ["python", "-c", \
  "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["python", "-m", "plm_jax.serve", "--host=0.0.0.0"]
CMD ["--model=/models/model"]
