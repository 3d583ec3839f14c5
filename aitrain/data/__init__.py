"""From records to ordered batches: read, convert, mask, prepare once, distribute to ranks."""
