"""The nightly job and its command line. From the bottom, a night runs through config, run, workspace, inputs, quality,
stages, nightly; then evaluation, training, report, cli. A room imports lower ones only, which a test of imports holds.
"""
