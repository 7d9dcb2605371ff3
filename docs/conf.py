"""Sphinx: ``sphinx-build -W --keep-going -b html docs build/docs``; no address is asked while it builds."""

import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import api_pages  # noqa: E402
import docstrings  # noqa: E402

import pyro_vae  # noqa: E402

api_pages.write(HERE / "api")

project = "pyro_vae"
author = "the contributors of pyro_vae"
version = release = pyro_vae.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["build"]

# Pages are Markdown; a notebook is executed anew, a page's Python is not: tests/test_docs.py runs it.
myst_heading_anchors = 3
nb_execution_mode = "force"
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # Pyro imports tqdm.auto, which warns
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autoclass_content = "class"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # a list: properties have entries of their own
python_maximum_signature_line_length = 70
python_use_unqualified_type_names = True
add_module_names = True

html_theme = "furo"
html_title = f"pyro_vae {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["copy.js"]
html_copy_source = False
html_show_sphinx = html_show_copyright = False
linkcheck_timeout = 20


def setup(app):
    """Read docstrings as they are meant, before napoleon looks for their sections."""

    def read(app, what, name, obj, options, lines):
        lines[:] = docstrings.as_rst(lines)
        if what == "property":
            lines[:0] = ["..", ""]  # napoleon takes what stands before a colon of the first line for a type

    def shorten(app, what, name, obj, options, signature, returns):
        """Write a default that is a class or a function by its name, and any other object as three dots."""
        named = re.sub(r"<(?:class|function) '?(?:\w+\.)*(\w+)[^<>]*>", r"\1", signature or "")
        return signature and re.sub(r"<[^<>]*>", "...", named), returns

    def skip(app, what, name, obj, skipped, options):
        """Leave out what a class inherits from other packages."""
        of = getattr(obj, "fget", getattr(obj, "__func__", obj))  # of a property, of a method
        return skipped or not str(getattr(of, "__module__", "")).startswith("pyro_vae") or None

    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", read, priority=400)
    app.connect("autodoc-process-signature", shorten)
