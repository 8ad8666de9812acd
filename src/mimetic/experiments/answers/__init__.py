"""From run records to what the chapters say: tables, and sentences whose numbers and verdict words are computed.

A module a part of the book: vision (chapters 6 and 7), head_start (6), recipes (5 to 7), parts (7), growth (8), kept
(9), gpu (GPU training and ImageNet's cost), language, rates and positions (10), share (11), recommenders,
first_question, questions, convergence, item_positions and scores (12), claims and reproduction (13), speed; machines
says what another machine changes, published what others report; common is what all share.
Every function copes with records that are not there yet: it says how many runs are in, and compares the arms that have
pairs.
"""
