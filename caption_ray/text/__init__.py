"""Words: how a sentence becomes tokens, and tokens become ids."""
