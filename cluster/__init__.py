"""How work is spread over Ray: connecting, bounded fan-out, workers' resources. Knows Ray and nothing of the job."""
