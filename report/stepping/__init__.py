"""Two faces of one stepper: lines on a terminal, and the Debug Adapter Protocol."""
