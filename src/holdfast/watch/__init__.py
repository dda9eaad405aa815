"""Trees to changes: hears where something happened, looks, and says what differs from the log."""
