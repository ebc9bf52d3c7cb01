"""Task files of lm-evaluation-harness for local data; `harness_tasks` adds the paths of the data."""
