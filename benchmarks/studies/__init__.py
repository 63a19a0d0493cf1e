"""Studies: measurements that answer one question, run by hand; no ratio of theirs is guarded."""
