//! Root of the tokenizer layer.
