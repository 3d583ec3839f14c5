"""Tasks: one LightningModule each, whose step is plain PyTorch."""
