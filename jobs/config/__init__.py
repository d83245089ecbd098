"""Every key of the configuration, its default and its limits, and how a file becomes an object. No IO but that file."""
