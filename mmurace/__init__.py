"""The mmu_notifier emulator as one package.

In a checkout the folders beside this one are the parts of it (links lead to them); an installed
package holds them itself.
"""
