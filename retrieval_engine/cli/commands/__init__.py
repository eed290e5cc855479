"""One file per command; its name is the command's name."""
