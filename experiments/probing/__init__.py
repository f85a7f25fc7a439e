"""What the features of a trained network are worth: ``probe`` and ``observe``."""
