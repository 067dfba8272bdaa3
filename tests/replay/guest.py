# SPDX-License-Identifier: MIT
"""
The machine in which imgtool runs on a file system, on dm-log-writes, on a disk: Debian's cloud kernel under QEMU, which
emulates the processor, so that it runs anywhere. It is told over its serial port what to do, a line of shell at a time.

Its disks are files, which this process reads and changes while the machine does not look: `disk`, which is logged; `log`;
`states`, many disks one behind the other, which the machine mounts to let the kernel recover them; `found`, where it puts
the files that it finds there, a tar archive for each.
"""
import os
import subprocess
import sys
import tarfile

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..', 'e2e'))
import guests    # noqa: E402
from machine import IMGTOOL, PATIENCE, Machine, Wrong    # noqa: E402

MIB = 1 << 20
LOG_BYTES, FOUND_BYTES, PAYLOAD_BYTES = 1024 * MIB, 48 * MIB, 2 * MIB
SLOTS = 64    # states that are mounted at a time

# Nothing in it may flush on imgtool's behalf: no sync, and no umount before the last mark.
INIT = '''\
#!/bin/sh
export PATH=/bin LC_ALL=C DM_DISABLE_UDEV=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
stty -F /dev/ttyS0 -echo
dmesg -n 1
%(insmod)s
mkdir -p /image /state /run
log() { dmsetup create log --table "0 $1 log-writes /dev/vda /dev/vdb"; }
end() { umount /image; dmsetup remove log; }
mark() { replay-helper mark "$*"; }
part() { dd if=/payload bs=512 skip=$1 count=$2 2>/dev/null; }
state() {
	mount -t $2 $3 /dev/mapper/s$1 /state || { dmesg | tail -n 20; return 1; }
	(cd /state && replay-helper times * >.times)
	tar cf - -C /state . | dd of=/dev/vdd bs=1M seek=$(($1 * %(found)d)) conv=notrunc 2>/dev/null
	umount /state
}
states() {
	table= names=
	for nr in $(seq 0 $(($1 - 1))); do
		table="$table;s$nr,,,rw,0 $2 linear /dev/vdc $((nr * $2))" names="$names s$nr"
	done
	dmsetup create --concise "${table#;}" || return
	for nr in $(seq 0 $(($1 - 1))); do state $nr $3 "$4" || return; done
	fsync /dev/vdd
	dmsetup remove $names
}
echo "UP $(cut -d' ' -f1 /proc/uptime)"
while read -r line; do
	eval "$line"
	echo "DID $?"
done </dev/ttyS0
'''


def scratch(path, size):
    """A file of nothing but a hole, the same file if it is there."""
    with open(path, 'ab') as file:
        file.truncate(0)
        file.truncate(size)
    return path


class Guest:
    """A machine that runs, with `programs` in it and bytes by chance in /payload."""

    def __init__(self, folder, programs, library, payload, disk_bytes):
        self.folder, self.disk_bytes = folder, disk_bytes
        guests.need(('qemu-system-x86_64', 'qemu-system-x86'), ('dmsetup', 'dmsetup'), ('strip', 'binutils'))
        kernel = guests.cloud_kernel()
        archive = guests.Initramfs()
        modules = guests.VIRTIO_MODULES + guests.LOG_MODULES + guests.XFS_MODULES
        found = kernel.modules(modules)
        if len(kernel.modules(guests.LOG_MODULES)) != len(guests.LOG_MODULES):
            raise guests.Skipped('the kernel package has no module dm-log-writes')
        archive.busybox(INIT % {'insmod': archive.modules(found), 'found': FOUND_BYTES // MIB})
        for program in programs:
            stripped = self.path(os.path.basename(program))
            guests.run('strip', '-o', stripped, program)
            archive.program(program, stripped)
        archive.program(dmsetup())
        archive.copy('lib/no_flush.so', library)
        archive.file('payload', payload)
        initrd = archive.write(self.path('initrd'), packed=False)    # to unpack it costs the emulated processor more
        command = ['qemu-system-x86_64', '-accel', 'tcg', '-cpu', 'Nehalem', '-m', '512', '-nodefaults', '-display', 'none',
                   '-no-reboot', '-serial', 'stdio', '-kernel', kernel.vmlinuz, '-initrd', initrd,
                   '-append', 'console=ttyS0 quiet panic=-1 no_timer_check mitigations=off']
        for name, size in (('disk', disk_bytes), ('log', LOG_BYTES), ('states', SLOTS * disk_bytes),
                           ('found', SLOTS * FOUND_BYTES)):
            command += ['-drive', 'file=%s,format=raw,if=virtio,cache=unsafe' % scratch(self.path(name), size)]
        self.machine = Machine('the guest', command=command)
        self.machine.expect(r'^UP [0-9.]+\r?\n')

    def path(self, name):
        return os.path.join(self.folder, name)

    def run(self, line, want=0, timeout=PATIENCE):
        """A line of shell. -> its exit status, what it printed"""
        since = self.machine.mark()
        self.machine.send(line + '\n')
        status = int(self.machine.expect(r'^DID (\d+)\r?\n', since, timeout).group(1))
        text = self.machine.text(since).replace('\r', '')
        if want is not None and status != want:
            raise Wrong('%r in the guest ended with %d: %s' % (line, status, text[-2000:]))
        return status, text[:text.rindex('DID ')]

    def fresh_log(self):
        scratch(self.path('log'), LOG_BYTES)

    def files(self, nr, fstype, options):
        """Lets the kernel recover and mount the first `nr` states. -> for each of them its files, {name: (bytes, mtime)}"""
        scratch(self.path('found'), SLOTS * FOUND_BYTES)
        self.run('states %d %d %s "%s"' % (nr, self.disk_bytes // 512, fstype, options), timeout=1200)
        for slot in range(nr):
            yield self.archived(slot)

    def archived(self, slot):
        with open(self.path('found'), 'rb') as file:
            file.seek(slot * FOUND_BYTES)
            with tarfile.open(fileobj=file, mode='r:') as archive:
                found = {os.path.basename(member.name): archive.extractfile(member).read()
                         for member in archive if member.isfile()}
        times = {}
        for line in found.pop('.times', b'').decode().splitlines():
            time_ns, name = line.split(' ', 1)
            times[name] = int(time_ns)
        return {name: (data, times.get(name, 0)) for name, data in found.items()}

    def close(self):
        self.machine.kill()


def dmsetup():
    found = [path for path in ('/usr/sbin/dmsetup', '/sbin/dmsetup') if os.path.exists(path)]
    if not found:
        raise guests.Skipped('dmsetup is missing (Debian package dmsetup): scripts/setup')
    return found[0]


def file_system(path, fstype, size):
    """Makes an empty one in a file."""
    scratch(path, size)
    if fstype == 'ext4':
        guests.need(('mke2fs', 'e2fsprogs'))
        made = ['mke2fs', '-q', '-F', '-t', 'ext4', '-b', '4096', '-J', 'size=4', '-E',
                'lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0', path]
    else:
        guests.need(('mkfs.xfs', 'xfsprogs'))
        made = ['mkfs.xfs', '-q', '-f', path]
    subprocess.run(made, env=guests.sbin_env(), check=True, stdout=subprocess.DEVNULL)


__all__ = ['Guest', 'IMGTOOL', 'MIB', 'PAYLOAD_BYTES', 'SLOTS', 'Wrong', 'file_system', 'guests', 'scratch']
