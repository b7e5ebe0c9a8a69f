"""Chips, the host of a card, ais_bench and its slices."""
