"""The attacks of test/attack.py: a module for each class."""
