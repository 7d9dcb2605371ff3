"""Packages that not everybody needs, imported when they are used; each belongs to an extra of the installation."""

from importlib import import_module
from typing import Any

EXTRAS = {  # by the package that is imported; setup.cfg lists the versions
    "PIL": "data",
    "dask": "cluster",
    "distributed": "cluster",
    "matplotlib": "plots",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "pandas": "data",
    "sklearn": "data",
    "statsmodels": "data",
    "torchvision": "data",
}


class MissingPackage(ImportError):
    """An optional package that is not installed; the message says how to install it."""


def optional(name: str, purpose: str) -> Any:
    """Import a module of an optional package and return it.

    ``purpose`` begins the message of the MissingPackage that is raised where it is not installed, such as "figures".

    >>> optional("matplotlib.figure", "figures").Figure.__name__
    'Figure'
    """
    package = name.partition(".")[0]
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingPackage(
            f"{purpose} need {package}, which is not installed; write pip install 'pyro_vae[{EXTRAS[package]}]'",
            name=package,
        ) from None
