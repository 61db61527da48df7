"""The repository as a whole: its imports, its packages and its README."""
