"""Names of the package: all there, from one place, and without the libraries that are slow to import."""

import ast
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import pyro_vae
from pyro_vae._lazy import LazyModule, lazy

ROOT = Path(pyro_vae.__file__).parent
LAZY = [path for path in ROOT.rglob("__init__.py") if " = lazy(" in path.read_text()]
USED = [
    "VAE",
    "priors",
    "guides",
    "likelihoods",
    "networks",
    "fit",
    "evaluate",
    "log_evidence",
    "plots",
    "Data",
    "load",
]
SLOW = {"matplotlib", "torchvision", "sklearn", "scipy"}
FLAT_IN_0_1 = (
    "analysis annealing checkpoint compiling convolutions data distributed divergences engines estimators evidence "
    "families flows guides handlers importance leaves likelihoods linear_gaussian mapped moments networks nonfinite "
    "parts paths plots priors state traces training vae variance"
)


def package_of(path):
    return import_module(".".join(path.parent.relative_to(ROOT.parent).parts))


def bound(nodes):
    """Names that statements bind, and the modules that they are imported from."""
    names = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Assign):
            targets = [node.targets[0], *getattr(node.targets[0], "elts", [])]
            names |= {target.id: None for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.slow
@pytest.mark.parametrize("path", LAZY, ids=lambda path: path.parent.name)
def test_what_type_checkers_see_is_what_is_there(path):
    tree, package = ast.parse(path.read_text()), package_of(path)
    (typed,) = (bound(node.body) for node in tree.body if isinstance(node, ast.If))
    eager = bound(tree.body)
    moved = set(vars(package).get("_MOVED", {}))
    for name, (module, original) in typed.items():
        found = getattr(package, name)
        is_module = f"{module}.{original}" in sys.modules
        assert found is (sys.modules[f"{module}.{original}"] if is_module else getattr(import_module(module), original))
    assert typed.keys() == set(dir(package)) - moved - eager.keys()
    assert len(package.__all__) == len(set(package.__all__)) and set(package.__all__) <= typed.keys() | eager.keys()


def test_every_public_name_resolves_and_others_do_not():
    assert all(getattr(pyro_vae, name) is not None for name in pyro_vae.__all__)
    with pytest.raises(AttributeError, match="module 'pyro_vae' has no attribute 'vea'"):
        pyro_vae.vea  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'vea'"):
        from pyro_vae import vea  # noqa: F401


@pytest.mark.parametrize("name", FLAT_IN_0_1.split())
def test_modules_of_0_1_are_found_by_their_old_names(name):
    module = getattr(pyro_vae, name)
    assert module.__name__.startswith("pyro_vae.") and module is sys.modules[module.__name__]


def test_a_name_is_a_member_of_its_home_or_the_module_itself():
    find, names = lazy("example", {"sqrt": "math", "path": "os.path", "absent": "math"})
    assert find("sqrt") is import_module("math").sqrt and find("path") is import_module("os.path")
    assert find("absent") is import_module("math")
    assert names() == ["absent", "path", "sqrt"]
    with pytest.raises(AttributeError, match="module 'example' has no attribute 'cos'"):
        find("cos")


@pytest.mark.slow
def test_a_lazy_module_is_imported_when_a_name_of_it_is_used():
    code = (
        "import sys; from pyro_vae._lazy import LazyModule; wave = LazyModule('wave'); print('wave' in sys.modules); "
    )
    code += "print(wave.open is __import__('wave').open)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "False\nTrue\n" and repr(LazyModule("wave")) == "LazyModule('wave')"
    with pytest.raises(AttributeError, match="module 'math' has no attribute 'cosine'"):
        LazyModule("math").cosine  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        LazyModule("no_such_module").name  # noqa: B018


@pytest.mark.slow
def test_slow_libraries_are_imported_when_they_are_needed():
    code = f"import sys, pyro_vae; [getattr(pyro_vae, name) for name in {USED}]; print(*{SLOW} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("name", sorted(pyro_vae._MOVED))
def test_who_imports_a_moved_module_or_loads_an_old_pickle_is_told_where_it_is(name):
    home = pyro_vae._MOVED[name]
    with pytest.raises(ModuleNotFoundError, match=f"'pyro_vae.{name}': it is now {home}; import from there"):
        import_module(f"pyro_vae.{name}")
    with pytest.raises(ModuleNotFoundError, match=f"it is now {home}"):
        pickle.loads(f"cpyro_vae.{name}\nSomething\n.".encode())
    assert import_module(home).__name__ == home
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'pyro_vae\.vea'$"):
        import_module("pyro_vae.vea")
