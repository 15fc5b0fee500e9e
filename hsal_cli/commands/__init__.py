"""One thin file a command: options, help text, one call into a room below, and the words printed at the end."""
