"""The methods: one LightningModule, and one file, each."""
