"""The questions of ``benchmark``, one file each.

A question has ``OPTIONS``, the options of the command that it takes; ``measure(images, args)``; and ``table`` and
``figure`` of what it measured. A group of the summary has ``OPTIONS`` and ``rows(images, args)``. A module can be both.
"""
