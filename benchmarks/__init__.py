"""Measured claims: each module prints figures as ratios against a real alternative in the same run."""
