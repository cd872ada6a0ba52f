"""Who writes an answer: this project's models, transformers, GGUF files, servers."""
