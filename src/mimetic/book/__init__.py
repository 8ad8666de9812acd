"""What the chapters say, from run records: tables, and sentences whose numbers and verdict words are computed.

A module a part of the book: pattern (chapter 2), construction (3), vision (6 and 7), head_start (6), recipes (5 to 7),
parts and patch_positions (7), growth (8), kept (9), gpu (GPU training and ImageNet's cost), language, rates and
positions (10), gains, shapes and share (11), recommenders, first_question, questions, convergence, item_positions and
scores (12), claims and reproduction (13), speed; machines says what another machine changes, published what others
report; common is what all share. live has a chapter's own short runs, report writes the numbers of the first page.
Every function copes with records that are not there yet: it says how many runs are in, and compares the arms that have
pairs.
"""
