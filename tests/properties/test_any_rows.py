"""Any rows given to ``Split`` and ``Data``: taken with their very values, or refused by wanted, got and a cure."""

import warnings

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from pyro_vae.data import Data, DataError, DataWarning, Split

OFTEN = settings(max_examples=10 * settings.default.max_examples)
CURES = "write", "give", "make", "drop", "correct", "rename", "mend"
TORCH = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
]
ENDLESS = [np.nan, np.inf, -np.inf, -0.0, 1e-320, 1e308, 3.4e38, 2.0**53, 2.0**63, -1.0, 0.5, 0.0, 1.0, 255.0]


def dtypes():
    return arrays.scalar_dtypes() | st.sampled_from([np.dtype(">f8"), np.dtype(">i4"), np.dtype("U3"), np.dtype("O")])


@st.composite
def numpy_rows(draw, dims):
    """An array of any dtype, many with odd values, some of them views whose memory is not in order."""
    dtype = draw(dtypes())
    shape = draw(arrays.array_shapes(min_dims=dims[0], max_dims=dims[1], min_side=0, max_side=6))
    if dtype.kind == "O":
        return np.full(shape, draw(st.sampled_from([None, "a", 1, 0.5])), dtype=object)
    elements = st.sampled_from(ENDLESS) if dtype.kind == "f" and draw(st.booleans()) else None
    with np.errstate(all="ignore"):
        rows = draw(arrays.arrays(dtype if elements is None else np.float64, shape, elements=elements)).astype(dtype)
    how = draw(st.sampled_from(["as it is", "strided", "backwards", "transposed", "read only", "masked"]))
    if how == "strided" and rows.ndim:
        rows = np.repeat(rows, 2, 0)[::2]
    elif how == "backwards" and rows.ndim:
        rows = rows[::-1]
    elif how == "transposed":
        rows = rows.T.copy().T
    elif how == "read only":
        rows.flags.writeable = False
    elif how == "masked" and rows.size:
        rows = np.ma.array(rows, mask=rows == rows.flat[0])
    return rows


@st.composite
def torch_rows(draw, dims):
    shape = draw(arrays.array_shapes(min_dims=dims[0], max_dims=dims[1], min_side=0, max_side=6))
    dtype, count = draw(st.sampled_from(TORCH)), int(np.prod(shape))
    values = draw(st.lists(st.sampled_from(ENDLESS), min_size=count, max_size=count))
    whole = not (dtype.is_floating_point or dtype.is_complex)
    rows = torch.tensor([int(np.nan_to_num(v, posinf=9, neginf=-9)) % 120 if whole else v for v in values])
    rows = rows.reshape(shape).to(dtype)
    how = draw(st.sampled_from(["as it is", "sparse", "transposed", "expanded", "gradient"]))
    if how == "sparse" and rows.dim() and rows.numel() and dtype not in (torch.uint16, torch.uint32):
        return rows.to_sparse()
    if how == "transposed" and rows.dim() > 1:
        return rows.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "expanded" and rows.numel():
        return rows.flatten()[0].expand(shape)
    return rows.requires_grad_() if how == "gradient" and rows.is_floating_point() else rows


def any_rows(low=0, high=4):
    others = st.sampled_from([None, "abcd", 3, 0.5, {}, [], [[1], [2, 3]], [1.0, 2.0], range(4), object(), b"ab"])
    return numpy_rows((low, high)) | torch_rows((low, high)) | others


def as_numbers(rows):
    """The values of rows as float64 or complex128, by NumPy alone."""
    if isinstance(rows, torch.Tensor):
        rows = (rows.double() if rows.is_floating_point() else rows).detach().numpy()
    rows = np.asarray(rows)
    return rows.astype(np.complex128 if rows.dtype.kind == "c" else np.float64)


def taken_or_refused(make, refused=ValueError):
    """Return what is made, or None where it is refused in words; any other error fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        try:
            return make()
        except refused as error:
            words = str(error).lower()
            assert ("wanted" in words and "got" in words) or "write" in words, words
            assert any(word in words for word in CURES), words
            return None


def check_field(name, field, rows):
    """Check the promise of a field's name, and that its values are those of the rows."""
    assert isinstance(field, torch.Tensor)
    np.testing.assert_array_equal(as_numbers(field), as_numbers(rows))
    if name == "counts":
        assert (field >= 0).all() and (field.double() == field.double().round()).all()
    if name == "table":
        assert field.is_floating_point() and field.dim() == 2
    if name == "mask":
        assert field.dtype == torch.bool
    if name == "labels":
        assert field.dtype == torch.int64 and (not len(field) or field.min() >= -1)
    if name == "images":
        assert field.dtype == torch.uint8 and field.dim() == 4 and field.is_contiguous()


@pytest.mark.parametrize("name", ["images", "labels", "counts", "table", "mask", "other"])
def test_any_rows_of_any_field_keep_their_values_or_are_refused(name):
    @OFTEN
    @given(any_rows())
    def check(rows):
        if rows is None:
            return
        with np.errstate(all="ignore"):
            split = taken_or_refused(lambda: Split(**{name: rows}))
            if split is not None:
                assert not np.ma.is_masked(rows)
                check_field(name, split.fields[name], rows)
                assert repr(split) and split._repr_html_()

    check()


@OFTEN
@given(st.data())
def test_rows_of_two_fields_keep_together_in_any_batch(data):
    size = data.draw(st.integers(1, 5))
    counts = data.draw(arrays.arrays(np.int64, (size, 2), elements=st.integers(0, 9)))
    weights = data.draw(arrays.arrays(np.float64, size, elements=st.floats(width=64)))
    split = Split(counts=counts, weights=weights)
    rows = data.draw(st.lists(st.integers(-size, size - 1), max_size=6))
    slices = data.draw(st.slices(size))
    mask = data.draw(arrays.arrays(bool, size))
    for index in (rows, np.array(rows, np.int32), torch.tensor(rows, dtype=torch.int64), slices, mask):
        batch, chosen = split[index], np.array(index, np.int64) if isinstance(index, list) else np.asarray(index)
        chosen = index if isinstance(index, slice) else chosen
        np.testing.assert_array_equal(batch.counts.numpy(), counts[chosen])
        np.testing.assert_array_equal(batch.weights.numpy(), weights[chosen])


@OFTEN
@given(st.data())
def test_any_arrays_are_a_data_set_of_all_their_rows_or_are_refused(data):
    name = data.draw(st.sampled_from(["train", "counts", "table"]))
    rows = data.draw(any_rows(*((3, 4) if name == "train" else (1, 3))))
    options = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "valid": st.sampled_from([0.1, 0.5, 1, 2, 0, -1, 1.5, np.nan, True]),
                "test": st.sampled_from([0.2, 1, np.float32(0.3), np.int64(1)]),
                "layout": st.sampled_from(["NCHW", "NHWC"]),
                "seed": st.sampled_from([0, 7]),
                "labels": any_rows(1, 1),
            },
        )
    )
    with np.errstate(all="ignore"):
        if rows is None:
            return
        made = taken_or_refused(lambda: Data.from_arrays(**{name: rows}, **options))
        if made is None:
            return
        field = "images" if name == "train" else name
        found = np.concatenate([as_numbers(getattr(made, split).fields[field]) for split in ("train", "valid", "test")])
        wanted = as_numbers(rows)
        if name == "train":
            wanted = np.rint(wanted * 255) if np.asarray(rows).dtype.kind == "f" else wanted
            found, wanted = np.sort(found, axis=None), np.sort(wanted, axis=None)
            assert np.abs(found - wanted).max() <= (1 if np.asarray(rows).dtype.kind == "f" else 0)
        else:
            order = [np.lexsort(part.reshape(len(part), -1).T) for part in (found, wanted)]
            np.testing.assert_array_equal(found[order[0]], wanted[order[1]])
    assert repr(made) and str(made) and made._repr_html_()


@OFTEN
@given(st.data())
def test_any_frame_is_a_table_of_its_numbers_or_is_refused(data):
    pandas = pytest.importorskip("pandas")
    size = data.draw(st.integers(0, 6))
    kinds = [
        st.floats(width=64),
        st.integers(-(2**60), 2**60),
        st.booleans(),
        st.sampled_from(["a", "b", None]),
        st.sampled_from([None, 1, "x", 0.5]),
        st.datetimes(),
        st.complex_numbers(),
    ]
    columns = data.draw(st.lists(st.sampled_from(kinds), max_size=3))
    values = [data.draw(st.lists(kind, min_size=size, max_size=size)) for kind in columns]
    frame = pandas.DataFrame({f"c{place}": column for place, column in enumerate(values)})
    made = taken_or_refused(lambda: Data.from_frame(frame), (ValueError, DataError))
    if made is None:
        return
    table = torch.cat([made.train.table, made.valid.table, made.test.table]).numpy()
    for place, column in enumerate(values):
        if all(isinstance(value, float | bool) for value in column):
            np.testing.assert_array_equal(np.sort(table[:, place]), np.sort(np.array(column, np.float64)))
        missing = sum(value is None or value != value for value in column)
        assert np.isnan(table[:, place]).sum() == missing
