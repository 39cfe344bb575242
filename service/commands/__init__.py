"""What each sub-command of ``clipserve`` does, one file a task."""
