"""The mmu_notifier emulator as one package.

In a checkout the folders beside this one are the parts of it (links lead to them); an installed
package holds them itself.
"""

__version__ = "0.2.0"
"""Raised as CHANGELOG.md says.  pyproject.toml reads it here."""
