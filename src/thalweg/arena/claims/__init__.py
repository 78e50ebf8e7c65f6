"""Claims that are no training race: a small function each, named by its card, that returns a Finding."""
