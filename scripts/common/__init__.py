"""What several programs need; each file owns one idea, and nobody else decides it (docs/architecture.md)."""
