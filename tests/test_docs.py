"""The pages of docs/: their Python runs, each public name has an entry in the API, and links lead somewhere."""

import importlib
import os
import re
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path
from types import ModuleType

import pytest
from forked import Forked

import pyro_vae

MARK = "-- end of a block --"
AS_SAID = OutputChecker()
ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("**/*.md"))
LINKED = [*PAGES, *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG"))]
# TensorBoard is not installed everywhere; where it is not, a writer takes its place that notes what it is given.
BEFORE = """
import importlib.util, sys, types, warnings
warnings.simplefilter("error", UserWarning)
# Whether k̂ of one row is above 0.7 depends on the machine, by the rounding of a training.
warnings.filterwarnings("ignore", message="Pareto k̂ > 0.7 (or fewer than 10 effective particles )?for 1 of")
if importlib.util.find_spec("tensorboard") is None:
    class SummaryWriter:
        def __init__(self, *args, **kwargs):
            self.scalars = []
        def add_scalar(self, *scalar):
            self.scalars.append(scalar)
        def close(self):
            pass
    sys.modules["torch.utils.tensorboard"] = types.SimpleNamespace(SummaryWriter=SummaryWriter)
"""


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.fixture
def api(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("api_pages")


@pytest.mark.slow
@pytest.mark.parametrize("page", list(filter(python_blocks, PAGES)), ids=name_of)
def test_python_blocks_run_in_order_and_print_what_the_page_says(page, tmp_path):
    """A process of its own for a page; no address can be reached, and no data set is there; warnings are errors."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    folders = {name: str(tmp_path / name) for name in ("HOME", "XDG_CACHE_HOME", "PYRO_VAE_DATA")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    program = "\n".join([BEFORE, *(f"{block}\nprint({MARK!r}, flush=True)" for block in python_blocks(page))])
    variables = {**os.environ, **nowhere, "no_proxy": "", "NO_PROXY": "", **folders, "PYTHONPATH": path}
    (tmp_path / "work").mkdir()
    done = Forked(program, tmp_path / "work", variables, log=tmp_path).wait(600)
    assert done.returncode == 0, done.stderr[-3000:]
    for printed, said in zip(done.stdout.split(f"{MARK}\n"), outputs(page)):
        assert said is None or AS_SAID.check_output(*map(without_numbers, (said, printed)), ELLIPSIS), printed


def outputs(page):
    """Return, for each Python block, the text that the page shows right below it, or None."""
    found = re.findall(r"```python\n.*?```\n(?:\n```text\n(.*?)```)?", page.read_text(), flags=re.DOTALL)
    return [text or None for text in found]


def without_numbers(text):
    """Return a text in which numbers, which differ between machines, and spaces are all alike."""
    return " ".join(re.sub(r"[-+−]?[0-9][0-9.,]*(?:e[-+]?[0-9]+)?", "0", text).split())


@pytest.mark.slow
def test_each_public_name_has_one_entry_in_the_api(api):
    names = re.findall(r"^\.\. (?:auto\w+|py:data|py:module):: (\S+)$", "\n".join(api.pages().values()), re.MULTILINE)
    assert len(names) == len(set(names))
    described = {id(found(name)) for name in names}
    rooms = [path.parent.name for path in (ROOT / "pyro_vae").glob("*/__init__.py")]
    for module in [pyro_vae, *(importlib.import_module(f"pyro_vae.{room}") for room in rooms)]:
        for name in module.__all__:
            assert f"{module.__name__}.{name}" in names or id(getattr(module, name)) in described, (module, name)


def found(name):
    """Return what a full name stands for; a package may define a name that its module has, such as ``sweep``."""
    owner, _, last = name.rpartition(".")
    value = getattr(importlib.import_module(owner), last) if owner else importlib.import_module(name)
    return importlib.import_module(name) if isinstance(value, ModuleType) else value


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_relative_links_lead_to_files_and_headings(page, api):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        built = target.parent == ROOT / "docs" / "api" and target.stem in api.pages()
        assert built or target.exists(), f"{name_of(page)}: no file {link}"
        assert not heading or heading in anchors(target), f"{name_of(page)}: no heading {link}"


def anchors(page):
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    included = re.match(r"```{include} (\S+)", page.read_text())
    source = page.parent / included[1] if included else page
    text = re.sub(r"```.*?```", "", source.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#{1,3} (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_page_on_architecture_names_each_file_and_room():
    page = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "pyro_vae").glob("[!_]*"):
        name = f"{path.name}/" if path.is_dir() else path.name
        assert f"`{name}`" in page or path.suffix == ".typed", name
    for name in re.findall(r"`(\w+/\w+\.py)`", page):
        assert (ROOT / "pyro_vae" / name).is_file(), name


def test_mathematics_of_docstrings_is_kept(api):
    as_rst = importlib.import_module("docstrings").as_rst
    assert as_rst(["log |det J| of (B, *event), ``*args``, a *field*"]) == [
        r"log \|det J\| of (B, \*event), ``*args``, a *field*"
    ]
    assert as_rst(["mean_, ``scale_``, z_t and _x"]) == [r"mean\_, ``scale_``, z_t and _x"]
    assert as_rst([">>> f(*x)", "3 * 4"]) == [">>> f(*x)", "3 * 4"]
    assert as_rst(["Write:", "", "    f(*x)", "", "a * b"]) == ["Write:", "", "::", "", "    f(*x)", "", r"a \* b"]
    assert as_rst(["Args:", "    x: a * b"]) == ["Args:", r"    x: a \* b"]
