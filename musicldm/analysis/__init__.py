"""What is measured on audio: key, onsets, embeddings."""
