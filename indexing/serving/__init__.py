"""A release that follows its store, for a long-running process. Single searches belong in search/."""
