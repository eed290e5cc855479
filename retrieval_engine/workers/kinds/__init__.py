"""One file per kind of worker pool; its name is the kind's name."""
