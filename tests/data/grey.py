"""Grey images in memory, and the data sets made of them."""

import numpy as np
import torch
from cures import code_in

from pyro_vae.data import sets as D

GREY = np.random.RandomState(0).randint(0, 256, (30, 1, 8, 8)).astype(np.uint8)
TENSOR = torch.from_numpy(GREY)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def in_memory(train, valid=None, test=None):
    return D.Data("own", *(D.Split(train if part is None else part) for part in (train, valid, test)))


def cured_by(message, images):
    return eval(code_in(message), {"images": images, "torch": torch})
