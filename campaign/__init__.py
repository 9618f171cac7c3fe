"""Many runs: hunts."""
