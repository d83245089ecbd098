"""The stages of a night, one file each: prepare, encode, build, validate, publish. The flow is in nightly.py."""
