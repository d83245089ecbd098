"""The command line: one table of commands, each a few lines that call the flow. No work of its own."""
