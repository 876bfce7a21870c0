"""The workers: background jobs, each in a few lines, and the only platform code that talks to a model."""
