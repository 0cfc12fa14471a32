# Breakpoints around the rewrite of the kernel's tables: entry, before the first write, all written but
# the TLB not flushed, return. They are placed at physical addresses, which the identity map runs at.
#
#   (gdb) source ptinspect.py
#   (gdb) source kpti.gdb
#   (gdb) continue
#   (gdb) pt snap before

pt kpti break
info breakpoints
