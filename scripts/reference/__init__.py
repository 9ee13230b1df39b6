"""Reference answers that the Rust tests compare against, one module a kind of fixture."""
