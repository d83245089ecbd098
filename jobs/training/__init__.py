"""Learning from search logs, one folder for each kind of model."""
