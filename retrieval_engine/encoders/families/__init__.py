"""One file per encoder family; its name is the family's name."""
