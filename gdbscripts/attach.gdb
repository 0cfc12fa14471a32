# Settings under which GDB can be trusted with an arm64 guest under QEMU.
#
#   gdb-multiarch vmlinux -x attach.gdb -ex 'target remote :1234' -ex 'source ptinspect.py'
#
# (or any GDB that knows aarch64). vmlinux may be left out: ptinspect reads symbols by itself.

python
def _ptinspect_settings():
    for setting in (
        "confirm off",
        "pagination off",
        "architecture aarch64",
        "scheduler-locking step",  # else the other CPUs run on, half a million instructions a step
        "remotetimeout 30",  # longer than any wait of ptinspect: GDB mixes up replies after its own
        "tcp auto-retry on",
        "auto-load off",  # no scripts that come with the guest's files
        "debuginfod enabled off",
    ):
        try:
            gdb.execute("set " + setting, False, True)
        except gdb.error as error:  # this GDB does not have it, or not yet
            gdb.write("attach.gdb: set %s: %s\n" % (setting, error), gdb.STDERR)


_ptinspect_settings()
end
