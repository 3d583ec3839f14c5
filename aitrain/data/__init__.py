"""From records to ordered batches: read, convert, mask, prepare once, deal to ranks."""
