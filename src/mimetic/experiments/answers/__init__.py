"""From run records to what the chapters say: tables, and sentences whose numbers and verdict words are computed.

A module a part of the book: vision (chapters 6 to 9), gpu (GPU training and ImageNet's cost), language (10 and 11), recommenders and
questions (12); common has what they share. Every function copes with records that are not there yet: it says how many runs are in,
and compares the arms that have pairs.
"""
