"""The questions of ``benchmark``, one file each.

A question has ``OPTIONS``, the options of the command that it takes; ``measure(images, args)``; and ``table`` and
``figure`` of what it measured.
"""
