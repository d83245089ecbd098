"""Opens a release and answers queries. What serves it to many belongs in serving/."""
