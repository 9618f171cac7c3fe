"""The kernel code that the parts run, by the kernel's own names.

A module's docstring begins with the path of the kernel's file that it stands for.  Where files of
the kernel call each other, and headers keep them apart, a file is several modules here
(``mm/memory.c``: ``memory``, ``do_fault``, ``do_wp_page``, ...), so that none imports itself.

Memory is reached by messages, and kernel code by the names that stand for them: ``pgtable``
(``ptep_get``, ``set_pte_at``, ``pte_offset_map_lock``), ``locking`` (``spin_lock``,
``mmap_read_lock``, ``folio_lock``), ``page_ref``, ``mm_inline``.  A reply stands for the barriers
that a processor needs: what was asked before has happened.

Each function's docstring names its source file and the releases whose behaviour it has; what
differs between releases is a switch of ``variant.Kernel``.  Everything it knows of the machine
it runs on is ``context.Processor``.
May import ``protocol`` and ``nodes.kernel``; imported by ``nodes``.
"""
