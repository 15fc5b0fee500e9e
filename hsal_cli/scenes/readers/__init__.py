"""Images and labels that others made: folders, SVHN."""
