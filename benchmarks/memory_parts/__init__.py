"""What `memory.py` measures, a module each."""
