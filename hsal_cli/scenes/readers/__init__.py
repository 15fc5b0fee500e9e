"""Reading labels that other tools wrote: one file a format, one form that all of them give, one way to find the image that is meant."""
