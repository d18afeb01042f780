"""Judging a policy: ways to sample from it, cells of scores at paired seeds, tables and plots."""
