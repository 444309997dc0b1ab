"""Text in, batches out: `sources` (text) -> `shards` (tokens on disk) -> `batches` (windows)."""
