"""Tests; a package, so that child processes can import it, whatever is installed by this name."""
