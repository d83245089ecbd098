"""What stages leave for each other: artifacts, typed records, sorted runs, chunks, blobs. Reads no user's file."""
