"""Releases: the file that names all parts by digest, how it is committed, read and verified."""
