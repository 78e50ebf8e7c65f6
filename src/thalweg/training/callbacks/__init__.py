"""What happens around the box: metrics, evaluation, checkpoints, safety, the live line."""
