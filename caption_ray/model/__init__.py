"""The network: encoder, attention, decoder, and the searches over it."""
