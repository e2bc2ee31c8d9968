"""Pages of the site from outside docs/: README.md is the first, and reports keep their place."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
  "README.md": "index.md",
  "CONTRIBUTING.md": "CONTRIBUTING.md",
  "CHANGELOG.md": "CHANGELOG.md",
}


def on_files(files, config):
  """Adds the pages of the repository's root and everything under results/."""
  for name, uri in PAGES.items():
    text = re.sub(r"\]\((?:\./)?docs/", "](", (ROOT / name).read_text())
    files.append(File.generated(config, uri, content=_in_site(text)))
  for path in sorted((ROOT / "results").rglob("*")):
    if path.is_file() and path.suffix != ".md":
      uri = path.relative_to(ROOT).as_posix()
      files.append(File.generated(config, uri, abs_src_path=str(path)))
  return files


def on_page_markdown(markdown, page, **_):
  """`../results/...` of a page in docs/ is `results/...` in the site."""
  return _in_site(markdown.replace("](../", "](")) if page.file.src_dir else markdown


def _in_site(text: str) -> str:
  """A report's page is drawn by the browser; its Markdown is for readers of the repository."""
  text = re.sub(r"\]\((?:\.\./)?README\.md", "](index.md", text)
  text = re.sub(r"\]\((results/[\w/]+)/report\.md", r"](\1/report.html", text)
  return re.sub(r"\]\((results/[\w/]+)/page\.md", r"](\1/index.html", text)
