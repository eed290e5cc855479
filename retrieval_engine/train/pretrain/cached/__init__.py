"""BLIP from what exists: a frozen backbone's states, encoded once, and a BERT for the text side."""
