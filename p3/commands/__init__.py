"""What the commands do; each in a file of its own, so that none loads what another needs."""

EXIT_CODES = """
Exit code: 0 if all is well, 1 if a fit diverged, a process of it was lost, or a comparison failed, 2 if the command or
its input is wrong, 130 if interrupted."""
