"""Why a schedule fails: the interleaving, the orders that decide, what would cure it."""
