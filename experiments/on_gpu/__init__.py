"""The steps of ``gpu``: each is a program that writes what it has found after each part of its work.

- ``steps``: their commands, and how the time is shared out.
- ``running``: a step in a process of its own, ended when its time is over.
- ``partial``: what a step has found so far, in a file.
- ``speed``: images a second of every way to write a training step, with the ways in ``ways`` and ``graphed``.
- ``quality``: log p(x) after trainings by a recipe, and the seconds they took.
- ``iwae``: log p(x) after a short training with k = 1, 5 and 50 particles.
"""
