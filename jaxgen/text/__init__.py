"""Text as numbers: tokenizers of words and of byte pairs, and CLIP's text encoder."""
