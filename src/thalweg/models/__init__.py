"""Models: the ladder of shapes, building, loading and saving, evaluation and generation."""
