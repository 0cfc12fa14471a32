"""Console logs of a kernel that died, from bytes to a verdict.

`logfile` unpacks a log, `lines` restores the kernel's own (`prefixes` are what stands before them),
`messages` knows their words, `reports` sorts them into one `draft` for each report, and `deaths` joins those
into an `incident`. `log_facts` works out what follows from one, with `depth`, `printed_walk` and
`kpti_registers`; `verdict`, the way in, judges it, with `lost_mapping` and `fault_verdict`.
"""
