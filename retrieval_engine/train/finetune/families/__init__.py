"""What is trained, one file per encoder family; see `learning.py`."""
