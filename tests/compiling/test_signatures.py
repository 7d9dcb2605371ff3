"""Signatures tell apart what needs another graph."""

import numpy as np
import pyro
import pytest
import torch

from pyro_vae.compiling import Untraceable
from pyro_vae.compiling.signatures import apart, interference, signature_of

X = torch.ones(2, 3)


@pytest.mark.parametrize(
    "other", [X[:1], X.double(), X.T.contiguous().T, None, 1, True, 1.0, [X], (X, X), {"a": X}, print]
)
def test_other_arguments_have_other_keys(other):
    key = signature_of((other,), {})[0].key
    kinds = [X, X[:1], None, 0, 1, True, 1.0, [X], (X, X), {"a": X}, len]
    alike = [kind for kind in kinds if signature_of((kind,), {})[0].key == key]
    assert len(alike) <= 1
    assert signature_of((other,), {})[0].key == key != signature_of((), {"x": other})[0].key


def test_arguments_are_rebuilt_from_other_tensors():
    signature, tensors = signature_of((X, [None, X]), {"flag": 3})
    assert tensors == [X, X]
    args, kwargs = signature.rebuild([1, 2])
    assert args == (1, [None, 2]) and kwargs == {"flag": 3}


def test_an_array_is_refused():
    with pytest.raises(Untraceable, match=r"torch\.from_numpy"):
        signature_of((np.ones(2),), {})


def test_defaults_of_torch_are_part_of_the_key(float64):
    in_float64 = signature_of((X,), {})[0].key
    torch.set_default_dtype(torch.float32)
    assert signature_of((X,), {})[0].key != in_float64


def test_a_signature_names_the_arguments_and_keeps_what_is_no_number():
    signature, tensors = signature_of((X, 3, "word", print), {"flag": None})
    assert str(signature) == "a tensor (2, 3), 3, 'word', builtin_function_or_method, None"
    assert signature.others == (print,) and tensors == [X]


def test_what_surrounds_a_call():
    assert interference() is None
    with pyro.poutine.scale(scale=0.5):
        assert interference() == "a handler of Pyro"


def test_other_objects_of_the_same_memory_have_gradients_of_their_own():
    x = torch.ones(2, requires_grad=True)
    (one,) = apart([x])
    one.sum().backward()
    assert one.requires_grad and x.grad is None and one.data_ptr() == x.data_ptr()
    assert not apart([X])[0].requires_grad
