"""Diffusion without networks: noise schedules, what a network predicts, and how to sample."""
