"""Task formats, the processor and the data collator."""
