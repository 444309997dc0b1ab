"""Text in, batches out: `sources` (documents) -> `shards` (tokens on disk) -> `batches` (windows)."""
