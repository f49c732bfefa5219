"""What Headrace is compared with; nothing that serves imports it."""
