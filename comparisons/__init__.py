"""What compares the two frameworks: the notebook, and the commands that measure them and write the pages."""
