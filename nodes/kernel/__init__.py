"""The kernel code that the parts run: one file per kernel file, the kernel's own names.

Each function's docstring names its source file and the releases whose behaviour it has; what
differs between releases is a switch of ``variant.Kernel``.  Everything it knows of the machine
it runs on is ``context.Processor``.
May import ``protocol`` and ``nodes.kernel``; imported by ``nodes``.
"""
