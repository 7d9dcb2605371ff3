"""Files of arrays are read as they were written, or refused in words that name them."""

import gzip
import io
import pickle

import numpy as np
import pytest
import scipy.io
from data_files import idx_bytes

from pyro_vae.data import DataError, read_array, read_arrays

ROWS = np.random.RandomState(0).randint(0, 256, (6, 4, 3)).astype(np.uint8)


def npz_bytes(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


FILES = {
    "rows.npy": lambda path: np.save(path, ROWS),
    "rows.NPZ": lambda path: path.write_bytes(npz_bytes(x=ROWS)),
    "rows.mat": lambda path: scipy.io.savemat(path, {"x": ROWS, "note": "text"}, do_compression=True),
    "rows-idx3-ubyte": lambda path: path.write_bytes(idx_bytes(ROWS)),
    "rows.idx3-ubyte": lambda path: path.write_bytes(idx_bytes(ROWS)),
    "rows-idx3-ubyte.gz": lambda path: path.write_bytes(gzip.compress(idx_bytes(ROWS))),
    "rows.amat": lambda path: np.savetxt(path, ROWS.reshape(6, 12), fmt="%d"),
    "rows.txt": lambda path: np.savetxt(path, ROWS.reshape(6, 12)),
    "rows.amat.gz": lambda path: path.write_bytes(
        gzip.compress("\n".join(" ".join(map(str, r)) for r in ROWS.reshape(6, 12)).encode())
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_each_format(tmp_path, name):
    FILES[name](tmp_path / name)
    found = read_array(str(tmp_path / name))
    assert np.array_equal(found.reshape(ROWS.shape), ROWS)
    assert found.shape == ((6, 12) if "amat" in name or "txt" in name else ROWS.shape)


def test_several_arrays(tmp_path):
    np.savez(tmp_path / "file.npz", a=ROWS, b=ROWS[0])
    with pytest.raises(DataError, match=r"wanted one array, got 2: a, b; write read_arrays\(.*\)\[name\]") as said:
        read_array(tmp_path / "file.npz")
    cure = str(said.value).rsplit("write ", 1)[1]
    assert np.array_equal(eval(cure, {"read_arrays": read_arrays, "name": "b"}), ROWS[0])


class Payload:
    def __reduce__(self):
        return (exec, ("raise AssertionError('code was run')",))


BAD = {
    "folder": (lambda path: path.mkdir(), "wanted a file, got a folder"),
    "gone.npy": (lambda path: None, "wanted a file, got nothing there"),
    "objects.npy": (lambda path: np.save(path, np.array([Payload()]), allow_pickle=True), "objects.npy cannot be read"),
    "objects.npz": (lambda path: np.savez(path, x=np.array([Payload()])), "objects.npz cannot be read"),
    "cut.npz": (lambda path: path.write_bytes(b"PK\x03\x04"), "cut.npz cannot be read"),
    "cut-idx3-ubyte": (lambda path: path.write_bytes(idx_bytes(ROWS)[:-1]), "declares 72 bytes, it holds 71"),
    "words.txt": (lambda path: path.write_text("a b\nc d"), "words.txt cannot be read"),
    "ragged.amat": (lambda path: path.write_text("1 2\n3"), "ragged.amat cannot be read"),
    "other.bin": (lambda path: path.write_bytes(b"12345"), "wanted a file .npy, .npz, .mat, .amat, .txt or idx"),
    "other": (lambda path: path.write_bytes(b"12345"), "wanted a file .npy"),
    "other.gz": (lambda path: path.write_bytes(b"12345"), "wanted a file .npy"),
    "file.pkl": (lambda path: path.write_bytes(pickle.dumps(Payload())), "wanted a file .npy"),
    "new.mat": (
        lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\0" * 400),
        "save it by save",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_read(tmp_path, name):
    make, message = BAD[name]
    make(tmp_path / name)
    with pytest.raises(DataError, match=message) as said:
        read_arrays(tmp_path / name)
    assert name in str(said.value)
