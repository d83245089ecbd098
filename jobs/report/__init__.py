"""What a person reads at the end: tables on the console. Figures are made elsewhere."""
