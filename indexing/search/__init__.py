"""Opens a release and answers queries. What a long-running server needs beyond that belongs in serving/."""
