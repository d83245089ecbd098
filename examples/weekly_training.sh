#!/bin/sh
# Fine-tunes the encoder on search logs, then publishes a release. Once a week, in place of that day's nightly run:
#   sh examples/weekly_training.sh my-train.yaml my.yaml
# Both files have the same name, store, workspace and catalogue; the second says `encoder: {model: latest}`.
# Exit code 4 of `train` means that the new encoder is not better: then the release keeps the encoder in use.
set -eu
nightcrate train -c "$1" || test $? -eq 4
nightcrate nightly -c "$2"
