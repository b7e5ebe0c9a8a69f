"""What several programs need; each module owns one idea (docs/architecture.md)."""
