"""Rewards of one's own: graders that are called once with each finished episode."""
