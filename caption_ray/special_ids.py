"""Ids that stand for no word: in one place for words, batches and model, which know nothing of each other."""

PAD_ID, START_ID, END_ID, UNKNOWN_ID = 0, 1, 2, 3
