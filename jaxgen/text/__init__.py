"""Text as numbers: word-level tokenizer and CLIP-shaped text encoder."""
