"""Pyro programs recorded as graphs, compiled, and compared with their eager form.

- ``compiled_svi``: ``CompiledSVI``, Pyro's ``SVI`` with compiled steps.
- ``artifacts``: graphs of tensor operations as machine code, kept in the user's cache.
- ``library``: a graph as a shared library; ``runtime``: the part that is the same in all of them, compiled once.
- ``store``: machine code kept between processes, in a folder of the user's own.
- ``compiled_loss``: ``compiled``, the loss of a program as a compiled module.
- ``recorder``: the operators that a function calls, as a graph.
- ``trial``: the run of a program before it is recorded.
- ``joint``: a loss and its gradients recorded as one graph.
- ``values``: programs whose operations depend on the values of tensors, found while they are recorded.
- ``signatures``: arguments, split into tensors and what is part of a graph.
- ``followed``: the graphs of a program that changes between calls.
- ``steps``: steps of optimisers, Pyro's and plain Adam, on gradients that are known.
- ``graphs``: functions compiled once for each shape of their arguments.
- ``loss``: the loss of a program as a module that holds all its parameters.
- ``constants``: numbers and flags that a trace turns into constants, watched for changes.
- ``noise``: the random numbers of a graph, drawn before it runs.
- ``checked``: graphs compared with their programs now and then.
- ``places``: where these values lie in a program, and how to read and restore them.
- ``parts``: what an object refers to.
- ``read_names``: names in the code of a function.
- ``outside``: environment variables, context variables, Pyro's settings.
- ``outcomes``: loss, gradients and buffers of a run, and whether two runs differ by more than rounding.
- ``compiler``: torch's compiler and its options.
- ``convolutions``: convolutions in forms that are faster on a CPU.
- ``private``: the private parts of torch and Pyro that are used, and what happens where one is gone.
- ``untraceable``: the exception ``Untraceable``, the warning ``StaleGraph``, and what their messages say.
"""

from pyro_vae.compiling.compiled_loss import CompiledLoss, compiled
from pyro_vae.compiling.compiled_svi import CompiledSVI
from pyro_vae.compiling.compiler import missing_compiler
from pyro_vae.compiling.convolutions import Conv2d, ConvTranspose2d
from pyro_vae.compiling.graphs import Graphs
from pyro_vae.compiling.loss import ProgramLoss, owners
from pyro_vae.compiling.untraceable import StaleGraph, Untraceable

__all__ = [
    "CompiledLoss",
    "CompiledSVI",
    "Conv2d",
    "ConvTranspose2d",
    "Graphs",
    "ProgramLoss",
    "StaleGraph",
    "Untraceable",
    "compiled",
    "missing_compiler",
    "owners",
]
