"""The nightly job and its command line. From the bottom, a night runs through config, run, workspace, inputs, quality,
stages, nightly; then evaluation, training, report, cli. A package imports only lower ones: a test of imports checks it.
"""
