"""The notebook, and what the commands of `comparisons` measure and write."""
