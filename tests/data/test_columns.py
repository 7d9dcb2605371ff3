"""Rows that arrive one after the other are kept as they are, in memory and on disk."""

import numpy as np
import pytest

from pyro_vae.data.columns import FileColumn, MemoryColumn, opened
from pyro_vae.data.mapped import is_mapped


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("shape", [(), (5,), (1, 4, 3)])
@pytest.mark.parametrize("count", [1, 12_000])
def test_what_is_appended_is_kept(tmp_path, dtype, shape, count):
    rows = np.random.RandomState(0).randint(0, 100, (count, *shape)).astype(dtype)
    columns = MemoryColumn(count + 3), FileColumn(tmp_path / "file.npy")
    for column in columns:
        for row in rows:
            column.append(np.asarray(row))
        column.close()
    found = opened(tmp_path / "file.npy")
    assert np.array_equal(columns[0].rows, rows) and np.array_equal(found, rows)
    assert columns[0].rows.dtype == found.numpy().dtype == rows.dtype
    assert is_mapped(found) == (dtype == np.uint8 and len(shape) == 3)


def test_a_column_without_rows_leaves_no_file(tmp_path):
    FileColumn(tmp_path / "file.npy").close()
    assert not list(tmp_path.iterdir()) and not len(MemoryColumn(3).rows)
