"""Data sets of torch for tests; in a module of their own, as those of a test's function cannot be pickled."""

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

GREY = np.random.RandomState(0).randint(0, 256, (40, 8, 8)).astype(np.uint8)
GREY[:, 0, :2] = 0, 255


class Rows(Dataset):
    """Items in a list, counted as they are read."""

    def __init__(self, items, length=None):
        self.items, self.length = list(items), length

    def __len__(self):
        return len(self.items) if self.length is None else self.length

    def __getitem__(self, index):
        READ.append(index)
        return self.items[index]


class Files(Dataset):
    """Rows of a .npy file, read one after the other."""

    def __init__(self, path, level=0):
        self.path, self.level = str(path), level

    def __len__(self):
        return len(np.load(self.path, mmap_mode="r"))

    def __getitem__(self, index):
        READ.append(index)
        return np.load(self.path, mmap_mode="r")[index] | self.level


class Elsewhere(Dataset):
    """Rows that are in no file and no attribute."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return GREY[index]


class Noisy(Rows):
    def __getitem__(self, index):
        return torch.rand(1, 4, 4)


class Stream(IterableDataset):
    """Items in a list; ``length`` is what it declares."""

    def __init__(self, items, length=None):
        self.items, self.length = list(items), length
        if length is not None:
            self.__class__ = SizedStream

    def __iter__(self):
        yield from self.items


class SizedStream(Stream):
    def __len__(self):
        return self.length


READ = []  # the rows that were read
