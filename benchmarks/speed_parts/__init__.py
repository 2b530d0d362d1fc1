"""What `speed.py` measures, a module each."""
