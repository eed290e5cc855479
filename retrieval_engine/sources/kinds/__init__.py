"""One file per kind of source; its name is the kind's name."""
