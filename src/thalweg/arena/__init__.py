"""Arena: which of several arms is better, by how much, and how sure one can be."""
