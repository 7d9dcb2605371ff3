"""Contents of files in the formats of known data sets."""

import io
import struct

import numpy as np
import scipy.io


def idx_bytes(array):
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def mat_bytes(compress=False, **variables):
    file = io.BytesIO()
    scipy.io.savemat(file, variables, do_compression=compress)
    return file.getvalue()


def npy_bytes(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def usps_text(levels, labels):
    rows = (" ".join(f"{place + 1}:{level:.4f}" for place, level in enumerate(row)) for row in levels)
    return "\n".join(f"{label + 1} {row} " for label, row in zip(labels, rows)).encode()
