"""One script per question; each prints JSON lines. See LOG.md."""
