"""The one place that knows RUN/: run, record, loop, seeds."""
