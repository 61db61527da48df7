"""`check_training`: whether two trainings do the same, and the first step and quantity that differs."""
