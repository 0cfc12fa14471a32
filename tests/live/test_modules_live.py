"""Loaded modules: the guest's own /proc/modules and /proc/kallsyms say what is right.

The modules are those that the host of the tests of KVM needs, of the reference kernel 6.1-cloud: its package
has them, and that host's RAM disk keeps them.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import missing
from session import KASLR_BOOT, initrd_with, launched, to_shell

from ptinspect.errors import KernelFileError, TargetError
from ptinspect.reference import kvm_host
from ptinspect.reference.initrd import Entry

GUEST = "6.1-cloud"
INIT = b"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
echo 0 > /proc/sys/kernel/kptr_restrict
echo 1 > /proc/sys/kernel/printk
for module in /mods/*; do /bin/busybox insmod $module; done
echo "MODULES BEGIN"
/bin/busybox cat /proc/modules
/bin/busybox grep '\\[' /proc/kallsyms
echo "MODULES END"
(while :; do /bin/busybox ip link show eth0 > /dev/null; /bin/busybox sleep 1; done) &
exec /init
"""


def modules_of(archive: bytes) -> Iterator[Entry]:
    """Yield the modules in an uncompressed archive, in its order (newc, cpio(5))."""
    at = 0
    while archive[at : at + 6] == b"070701":
        size, length = (int(archive[at + n : at + n + 8], 16) for n in (54, 94))
        name = archive[at + 110 : at + 110 + length - 1].decode()
        data = at + 110 + length + (-(110 + length) % 4)
        if name.startswith("modules/"):
            yield Entry(f"mods/{name.split('/')[1]}", stat.S_IFREG | 0o644, archive[data : data + size])
        at = data + size + (-size % 4)


@pytest.fixture
def initrd(tmp_path: Path) -> Path:
    """The reference guest's, and after it the modules and a first process that loads them."""
    try:
        host = kvm_host.find()
    except TargetError:
        missing("the host for KVM guests, with modules of the guest")
    found = list(modules_of(host.initrd.read_bytes()))
    assert found
    return initrd_with(GUEST, tmp_path, {"modinit": INIT}, Entry("mods", stat.S_IFDIR | 0o755), *found)


def test_modules_of_a_running_kernel(initrd: Path) -> None:
    append = KASLR_BOOT.replace("rdinit=/init", "rdinit=/modinit")
    card = "-- -device virtio-net-pci,romfile="
    with launched(GUEST, f'--initrd {initrd} --append "{append}" {card}') as live:
        pending = live("break 'virtio_net_driver_init [virtio_net]' --temporary")
        assert (pending["pending"], pending["places"]) == (True, [])
        stop = live("continue --timeout 300")
        assert stop["place"] == f"{stop['pc']} (virtio_net_driver_init+0x0 [virtio_net])"
        with pytest.raises(KernelFileError, match="module virtio_net has no symbol 'nothing_at_all'"):
            live("break 'nothing_at_all [virtio_net]'")
        assert live("break")["breakpoints"] == []
        to_shell(live)
        assert live.ctx.guest.qemu is not None
        text = live.ctx.guest.qemu.console.read_text("utf-8", "replace")
        said = text.partition("MODULES BEGIN")[2].partition("MODULES END")[0]
        modules = live.ctx.guest.view.modules
        listed = {
            name: (int(base, 16), int(size))
            for name, size, base in re.findall(r"(?m)^(\w+) (\d+) .* 0x([0-9a-f]+)\s*$", said)
        }
        assert "virtio_net" in listed
        assert modules.incomplete == ""
        assert listed == {m.name: (m.parts[0][0], m.parts[0][1] - m.parts[0][0]) for m in modules.listed}
        shown = {m["name"]: (int(m["parts"][0]["start"], 16), m["state"]) for m in live("modules")["modules"]}
        assert shown == {name: (base, "live") for name, (base, _) in listed.items()}
        for module in modules.listed:
            symbols = re.findall(rf"(?m)^([0-9a-f]{{16}}) (\w) (\S+)\t\[{module.name}\]", said)
            theirs = {(int(at, 16), kind.lower(), name) for at, kind, name in symbols if name[0] not in "$."}
            table = modules.table(module)
            ours = set(zip(table.addresses.tolist(), table.kinds.lower(), table.names, strict=True))
            assert theirs == ours, module.name
        for name, words in (("virtio_net_driver_init", "freed by now"), ("virtnet_sats", "virtnet_stats")):
            with pytest.raises(KernelFileError, match=f"no symbol '{name}'") as refused:
                live(f"break '{name} [virtio_net]'")
            assert words in (refused.value.hint or "")
        stop = live("until virtnet_stats --timeout 300")
        assert stop["place"] == f"{stop['pc']} (virtnet_stats+0x0 [virtio_net])"
        frames = [frame["place"] for frame in live("bt")["frames"]]
        assert frames[0] == stop["place"]
        assert re.search(r"\(dev_get_stats\+0x\w+\)$", frames[1])
        assert live("symbol $pc")["module"] == "virtio_net"
        shown = live("disassemble -n 2")
        assert (shown["function"], shown["instructions"][0]["address"]) == ("virtnet_stats", stop["pc"])
        assert live("stack")["frames"][0]["symbol"] == "virtnet_stats+0x0 [virtio_net]"
