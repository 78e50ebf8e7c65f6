"""One run from recipe to report: plan, assemble, train, close. What `thalweg train` and `thalweg.train` call."""
