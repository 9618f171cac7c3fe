"""Held against what others measured."""

from typing import Final

SUITES: Final = {
    "functions": "which functions real kernels called",
    "kvm": "what tracepoints of a real KVM and mm showed",
}
"""What ``conform`` can compare with, and what a table of it shows."""
