"""Schemas of tables as JSON; the types of pandas by their names."""

from collections.abc import Hashable
from dataclasses import fields
from typing import Any

import numpy as np

from pyro_vae.data.frames import imported
from pyro_vae.tables import Column, Schema


def described_schema(schema: Schema) -> dict[str, Any]:
    """Return a schema as ``schema_of`` takes it; raise ValueError for a name or type that cannot be written down."""
    return {"columns": [_described(column) for column in schema.columns], "rows": schema.rows}


def schema_of(content: dict[str, Any]) -> Schema:
    """Return the schema that an object describes.

    >>> import pandas as pd
    >>> schema = Schema.from_frame(pd.DataFrame({"visits": [0, 2, 1], "eyes": ["green", "blue", "brown"]}))
    >>> schema_of(described_schema(schema)) == schema
    True
    """
    return Schema(tuple(_column(column) for column in content["columns"]), int(content["rows"]))


def _described(column: Column) -> dict[str, Any]:
    values = {field.name: _plain(getattr(column, field.name)) for field in fields(Column) if field.name != "dtype"}
    described = {**values, "dtype": _described_dtype(column.dtype)}
    if _column(described) != column:
        raise ValueError(
            f"column {column.name!r}: its name, its type {column.dtype} or a category of it cannot be written down; "
            "make it of words or numbers before the schema is made"
        )
    return described


def _column(content: dict[str, Any]) -> Column:
    values = {key: _tuples(value) for key, value in content.items() if key != "dtype"}
    return Column(**values, dtype=_dtype(content["dtype"]))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value if _is_plain(value) else str(value)


def _is_plain(value: Hashable) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def _described_dtype(dtype: Any) -> Any:
    if isinstance(dtype, imported().CategoricalDtype):
        categories = dtype.categories
        return {"categories": _plain(tuple(categories)), "of": str(categories.dtype), "ordered": bool(dtype.ordered)}
    return str(dtype)


def _dtype(content: Any) -> Any:
    pandas = imported()
    if isinstance(content, dict):
        categories = pandas.Index(content["categories"], dtype=content["of"])
        return pandas.CategoricalDtype(categories, content["ordered"])
    return pandas.api.types.pandas_dtype(content)
