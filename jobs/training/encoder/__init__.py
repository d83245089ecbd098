"""Fine-tuning of the encoder: pairs, negatives, loss, steps, checkpoints. Measuring belongs in evaluation/."""
