"""Weights of other libraries: a Hugging Face directory or a run -> our parameters, and back.

A family is one table of names in one file (bert.py); a new one is entered in directory.FAMILIES.
"""

from research.models.pretrained.directory import fits, labels, resolve, trunk
from research.models.pretrained.export import save
from research.models.pretrained.weights import Account, load, transfer

__all__ = ["Account", "fits", "labels", "load", "resolve", "save", "transfer", "trunk"]
