"""What the records imply: order, entries, frames, fills, operations."""
