"""Holdfast keeps an organisation's mail running when a machine dies. See docs/ for the concepts."""

__version__ = "0.1.0"
