"""Each module of pyro_vae has a test file of its own, in the mirrored folder and with its name."""

from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "pyro_vae"
UNTESTED = {"plots/style.py", "words.py"}  # nothing but constants


def own_files(module):
    """Return the test files of a module; where names clash, the room is part of the name."""
    names = f"test_{module.stem.strip('_')}.py", f"test_{module.parent.name}_{module.stem}.py"
    return [path for path in (TESTS / module.parent / name for name in names) if path.is_file()]


def test_each_module_has_a_test_file_or_is_an_exception():
    modules = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert len(modules) > 90
    found = {str(module): len(own_files(module)) for module in modules}
    assert {module for module, count in found.items() if count == 0} == UNTESTED
    assert {module for module, count in found.items() if count > 1} == set()


def test_no_two_files_have_one_name():
    """Files of tests and their helpers are imported by their names alone."""
    names = Counter(path.name for path in TESTS.rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
