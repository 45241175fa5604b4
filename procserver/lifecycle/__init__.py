"""Control flow in time order: boot, worker, reload, drain, reclaim."""
