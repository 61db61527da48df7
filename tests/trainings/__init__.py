"""Tests of the checker of trainings."""
