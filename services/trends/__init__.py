"""The trends service: interactions in, windowed popularity and item counters out."""
