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
        "remotetimeout 30",  # longer than any wait of ptinspect: GDB mixes up replies after its own
        "tcp auto-retry on",
        "auto-load off",  # no scripts that come with the guest's files
        "debuginfod enabled off",
    ):
        try:
            gdb.execute("set " + setting, False, True)
        except gdb.error as error:  # this GDB does not have it, or not yet
            gdb.write("attach.gdb: set %s: %s\n" % (setting, error), gdb.STDERR)


def _ptinspect_locking(event=None):
    try:  # else the other CPUs run on, half a million instructions a step
        gdb.execute("set scheduler-locking step", False, True)
    except gdb.error:
        return  # not connected yet: GDB takes it from the first stop on
    gdb.events.stop.disconnect(_ptinspect_locking)


gdb.events.stop.connect(_ptinspect_locking)
_ptinspect_settings()
_ptinspect_locking()
end
