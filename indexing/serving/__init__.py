"""A release that follows its store, for a process that stays up. Single answers belong in search/."""
