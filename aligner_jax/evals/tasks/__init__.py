"""Tasks of lm-evaluation-harness whose data are local files; `harness_tasks` fills in where those are."""
