"""The toy task and checkpoint of the fine-tuning tests."""

from tests.tasks.conftest import documents, source, table, tokenizer

__all__ = ["documents", "source", "table", "tokenizer"]
