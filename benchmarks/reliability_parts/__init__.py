"""Parts of `reliability.py`: each has `measure(examples)`, which returns rows."""
