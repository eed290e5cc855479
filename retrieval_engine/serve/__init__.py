"""HTTP over the same calls as the command line."""
