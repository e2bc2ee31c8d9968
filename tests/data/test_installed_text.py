"""The corpus without download: docstrings to prose, modules to documents, TFDS to ArrayRecord."""

import ast
import contextlib
import os
import sys
from pathlib import Path

import pytest

from plm_jax.data import installed_text, processes
from plm_jax.data.corpora import open_source
from plm_jax.data.docstrings import docstrings
from plm_jax.data.installed_text import Module
from plm_jax.data.prose import is_prose, sentences
from plm_jax.errors import UserError

NUMPY_STYLE = """Return the `mean` of :class:`~a.b.Array` values.

    The second paragraph says **more** about it [1]_, e.g. this.
    It ends here.  For example::

        Code that looks like a sentence is dropped here.

    Parameters
    ----------
    x : array_like, optional
        The values that are averaged over the last axis.
    *args : tuple

    .. math:: The body of a formula is never a sentence of it.

    .. note:: The note is kept as it is prose.

    See Also
    --------
    median : This entry of a list is dropped with it.

    References
    ----------
    .. [1] A. Author, "The title of the paper is here.", 1999.

    Examples
    --------
    The example computes the mean of three numbers.

    >>> mean([1, 2, 3])
    This is the output of the doctest and is dropped.

    ===== =====
    The table has a row that reads well.   Yes.
    ===== =====
    """

GOOGLE_STYLE = """Reads the file. See https://example.com for the format of it.

  Args:
    path: The place of the file that is
      read from the disk.
    mode (str): one of r and w.

  Returns:
    The text of the file as a string.
  """


def test_numpy_docstrings_leave_their_prose():
  assert sentences(NUMPY_STYLE)[0] == [
    "Return the mean of Array values.",
    "The second paragraph says more about it, e.g. this.",
    "The values that are averaged over the last axis.",
    "The note is kept as it is prose.",
    "The example computes the mean of three numbers.",
  ]


def test_google_docstrings_lose_item_headers_and_addresses():
  assert sentences(GOOGLE_STYLE)[0] == [
    "The place of the file that is read from the disk.",
    "The text of the file as a string.",
  ]


@pytest.mark.parametrize(
  "line",
  [
    "x = f(the_value, of_it).",
    "Too short this.",
    "Title of a Section",
    "Foo_bar baz_qux is_a the_end of_x.",
  ],
)
def test_code_titles_and_fragments_are_not_prose(line):
  assert not is_prose(line)


def test_docstrings_are_those_that_a_walk_over_the_tree_finds():
  for module in ("textwrap", "argparse", "inspect", "heapq"):
    source = Path(sys.modules["os"].__file__).with_name(f"{module}.py").read_bytes()
    nodes = [ast.parse(source)]
    for node in nodes:  # depth first would be source order; compare as sets
      nodes += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.AST)]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = {ast.get_docstring(n, clean=False) for n in nodes if isinstance(n, kinds)} - {None}
    quoted = {doc for doc in found if f'"{doc[:5]}' not in source.decode() or '"""' in repr(source)}
    assert set(docstrings(source)) <= found and len(quoted - set(docstrings(source))) <= 4, module


def test_strings_and_comments_with_quotes_do_not_confuse_the_reader():
  source = b"""# It's a \'\'\' comment\n'''Module's "doc".'''\nx = '''not''' + "it's \\" #"
def f():  # why
  # and why
  r\"\"\"Raw \\d.\"\"\"
  return \"\"\"no\"\"\"
"""
  assert docstrings(source) == ['Module\'s "doc".', "Raw \\d."]
  assert docstrings(b'"""broken \\N{x}"""') == []


@pytest.fixture
def small(monkeypatch, tmp_path):
  """Three modules in place of thousands."""
  found = []
  for name, doc in [
    ("a.one", "This is the first sentence of it.\n\nThis one is in both of them."),
    ("a.two", "This one is in both of them.\n\nAnd this is the last of them."),
    ("b", "This one is in both of them."),
  ]:
    path = tmp_path / f"{name}.py"
    path.write_text(f'"""{doc}"""\n')
    found.append(Module(name[0], name, str(path)))
  monkeypatch.setattr(installed_text, "modules", lambda: found)
  return found


@pytest.mark.parametrize("cores", [1, 2])
def test_a_sentence_occurs_once_and_a_module_is_a_document(small, monkeypatch, cores):
  monkeypatch.setattr(processes, "cores", lambda: cores)
  documents, record = installed_text.documents()
  assert [(d.name, d.label, len(d.sentences)) for d in documents] == [
    ("a.one", "a", 2),
    ("a.two", "a", 1),
  ]
  assert record["dropped"]["sentences seen before"] == 2
  assert record["documents"] == 2 and record["sentences"] == 3
  assert installed_text.documents()[1] == record


def test_the_tfds_builder_stores_the_text_and_its_record_without_noise(small, tmp_path, capsys):
  import data.installed_text

  assert data.installed_text.Builder.name == "installed_text"
  source = open_source("tfds:installed_text", tmp_path)
  documents, record = installed_text.documents()
  assert list(source.documents()) == documents
  assert source.record()["sha256"] == record["sha256"]
  assert open_source("tfds:installed_text", tmp_path).fingerprint() == source.fingerprint()
  assert "tensorflow" not in sys.modules
  assert capsys.readouterr().out == ""
  assert not [name for name in os.listdir(tmp_path / "tfds") if name.startswith(".")]


def test_every_installation_has_megabytes_of_modules_and_none_of_them_is_a_test():
  modules = installed_text.modules()
  size = 0
  for module in modules:
    with contextlib.suppress(OSError):
      size += os.path.getsize(module.path)
  assert size > 40e6 and len({module.label for module in modules}) >= 12
  assert not [m for m in modules if ".tests." in m.name or m.name.endswith("_test")]
  assert modules == installed_text.modules()
  assert installed_text.read(next(m for m in modules if m.name == "pydoc_data.topics"))[0]


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
  import data.installed_text

  def fails(*_, **__):
    raise RuntimeError("write() failed: No space left on device; at byte 204800")

  monkeypatch.setattr(data.installed_text.Builder, "download_and_prepare", fails)
  with pytest.raises(UserError, match=r"no space left .* choose another --cache"):
    open_source("tfds:installed_text", tmp_path)
