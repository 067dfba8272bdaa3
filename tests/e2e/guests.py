# SPDX-License-Identifier: MIT
"""
The guests of the end-to-end tests, made from what the system has: the boot sector beside this file, a disk that GRUB
starts from, and Debian's cloud kernel with a small root file system of busybox. Nothing is mounted and nobody needs to
be root.

The kernel's package is downloaded once, to ${XDG_CACHE_HOME:-~/.cache}/libimg/linux, and never installed. What cannot
be had here raises Skipped with the reason.
"""
import glob
import gzip
import hashlib
import os
import platform
import random
import re
import shutil
import stat
import subprocess
import tempfile
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'libimg', 'linux')
MIB = 1 << 20
SECTOR = 512

# Where the boot sector keeps what (see there).
NOTE_LBA, PATTERN_LBA, PATTERN_SECTORS = 40, 64, 2048
WRITER_LBA, WRITER_SLOTS = 4096, 2048
HOLE_BYTES = 12 * MIB
BOOT_BYTES = 16 * MIB


class Skipped(Exception):
    pass


def run(*args, **more):
    done = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **more)
    if done.returncode:
        raise RuntimeError('%s ended with %d: %s' % (' '.join(map(str, args)), done.returncode,
                                                     done.stdout.decode(errors='replace').strip()[-600:]))
    return done.stdout


def need(*programs):
    for program, package in programs:
        if not shutil.which(program, path=os.environ.get('PATH', '') + ':/usr/sbin:/sbin'):
            raise Skipped('%s is missing (Debian package %s): scripts/setup' % (program, package))


# ---- the boot sector ----

def boot_sector(path):
    """A raw disk with the guest of bootsector.S."""
    need(('as', 'binutils'), ('ld', 'binutils'))
    run('as', '--32', '-o', path + '.o', os.path.join(HERE, 'bootsector.S'))
    run('ld', '-m', 'elf_i386', '-Ttext', '0x7c00', '--oformat', 'binary', '-o', path, path + '.o')
    os.unlink(path + '.o')
    os.truncate(path, BOOT_BYTES)
    return path


# ---- GRUB ----

GRUB_DIR = '/usr/lib/grub/i386-pc'
GRUB_START = 2048 * SECTOR
# The core is compressed, and unpacking it is slow where guest code is emulated: it has what it needs to load the rest.
GRUB_CORE = 'biosdisk part_msdos ext2'
GRUB_LOADED = 'normal echo loadenv serial terminal terminfo test read halt reboot'
GRUB_CONFIG = '''\
%s
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
terminfo serial dumb
load_env -f /grubenv boots
if [ -z "$boots" ]; then set boots=0; fi
echo "GRUB HAS $boots"
if [ "$boots" = "111" ]; then set boots=0; else
	if [ "$boots" = "0" ]; then set boots=1; else set boots="1$boots"; fi
fi
save_env -f /grubenv boots
echo "GRUB SAVED $boots"
while [ 1 = 1 ]; do
	echo "GRUB COMMAND?"
	read command
	if [ "$command" = "show" ]; then
		load_env -f /grubenv boots note
		echo "GRUB FILE boots=$boots note=$note memory=$ticks."
	elif [ "$command" = "halt" ]; then halt
	elif [ "$command" = "reboot" ]; then reboot
	elif [ "$command" = "remember" ]; then set ticks="1$ticks"
	else
		set note="$command"
		save_env -f /grubenv note
		echo "GRUB SAVED note=$note"
	fi
done
'''


def grub_modules(names):
    """-> names, and what they depend on"""
    depends = {}
    with open(GRUB_DIR + '/moddep.lst', encoding='ascii') as file:
        for line in file:
            name, _, others = line.partition(':')
            depends[name] = others.split()
    found = []
    for name in names:
        for one in [*grub_modules(depends[name]), name]:
            if one not in found:
                found.append(one)
    return found


def grub_disk(path):
    """A raw disk of 16 MiB: GRUB before a partition with ext2 that holds its environment."""
    need(('grub-mkimage', 'grub-common'), ('mke2fs', 'e2fsprogs'))
    if not os.path.exists(GRUB_DIR + '/boot.img'):
        raise Skipped(GRUB_DIR + ' is missing (Debian package grub-pc-bin): scripts/setup')
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as work:
        os.mkdir(work + '/root')
        with open(work + '/root/grubenv', 'wb') as file:
            file.write(b'# GRUB Environment Block\n'.ljust(1024, b'#'))
        with open(work + '/root/grub.cfg', 'w', encoding='ascii') as file:
            file.write(GRUB_CONFIG % '\n'.join('insmod ' + name for name in GRUB_LOADED.split()))
        os.mkdir(work + '/root/i386-pc')
        for name in grub_modules(GRUB_LOADED.split()):
            shutil.copy('%s/%s.mod' % (GRUB_DIR, name), work + '/root/i386-pc')
        run('grub-mkimage', '-d', GRUB_DIR, '-O', 'i386-pc', '-o', work + '/core', '-p', '(hd0,msdos1)/',
            *GRUB_CORE.split())
        run('mke2fs', '-q', '-F', '-t', 'ext2', '-d', work + '/root', work + '/fs', '14M',
            env=sbin_env())
        with open(GRUB_DIR + '/boot.img', 'rb') as file:
            boot = bytearray(file.read(SECTOR))
        with open(work + '/core', 'rb') as file:
            core = file.read()
        with open(work + '/fs', 'rb') as file:
            fs = file.read()
    if SECTOR + len(core) > GRUB_START:
        raise RuntimeError('GRUB core of %d bytes does not fit before the partition' % len(core))
    entry = bytes([0x80, 0, 2, 0, 0x83, 0, 2, 0]) + (2048).to_bytes(4, 'little') + (14 * 2048).to_bytes(4, 'little')
    boot[446:510] = entry.ljust(64, b'\0')
    with open(path, 'wb') as file:
        file.write(boot)
        file.seek(SECTOR)
        file.write(core)
        file.seek(GRUB_START)
        file.write(fs)
        file.truncate(BOOT_BYTES)
    return path


# ---- Linux ----

# In the order in which they are loaded; what the kernel has built in is left out.
VIRTIO_MODULES = ('virtio_ring', 'virtio', 'virtio_pci_modern_dev', 'virtio_pci_legacy_dev', 'virtio_pci', 'virtio_blk',
                  'virtio-rng', 'virtio_console')
KVM_MODULES = ('irqbypass', 'ccp', 'kvm', 'kvm-amd')
BUTTON_MODULES = ('button', 'evdev')
LOG_MODULES = ('dm-mod', 'dm-log-writes')
XFS_MODULES = ('libcrc32c', 'xfs')
ALL_MODULES = VIRTIO_MODULES + KVM_MODULES + BUTTON_MODULES + LOG_MODULES + XFS_MODULES


class Kernel:
    def __init__(self, folder):
        self.folder = folder
        self.vmlinuz = os.path.join(folder, 'vmlinuz')

    def modules(self, names):
        """-> paths of those that there are, in that order"""
        paths = [os.path.join(self.folder, name + '.ko') for name in names]
        return [path for path in paths if os.path.exists(path)]


def cloud_kernel():
    """Debian's cloud kernel and the modules that we load, from the cache or from the package."""
    kernel = Kernel(os.path.join(CACHE, 'cloud-%08x' % zlib.crc32(' '.join(ALL_MODULES).encode())))
    if os.path.exists(kernel.vmlinuz):
        return kernel
    if platform.machine() != 'x86_64':
        raise Skipped('the kernel is for x86-64')
    need(('apt-get', 'apt'), ('dpkg-deb', 'dpkg'))
    os.makedirs(CACHE, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        package = find_package()
        got = subprocess.run(['apt-get', 'download', package], cwd=work, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, check=False)
        debs = glob.glob(work + '/*.deb')
        if got.returncode or not debs:
            raise Skipped('%s cannot be downloaded: %s' % (package, got.stdout.decode(errors='replace').strip()[-200:]))
        run('dpkg-deb', '-x', debs[0], work + '/root')
        os.mkdir(work + '/cloud')
        for name in ALL_MODULES:
            for path in glob.glob(work + '/root/lib/modules/*/kernel/**/' + name + '.ko', recursive=True):
                shutil.copy(path, work + '/cloud')
        for path in glob.glob(work + '/root/boot/vmlinuz-*'):
            shutil.copy(path, work + '/cloud/vmlinuz')
        with open(work + '/cloud/package', 'w', encoding='ascii') as file:
            file.write(os.path.basename(debs[0]) + '\n')
        try:
            os.rename(work + '/cloud', kernel.folder)
        except OSError:
            if not os.path.exists(kernel.vmlinuz):    # another test was faster
                raise
    return kernel


def find_package():
    """-> the package with the kernel that linux-image-cloud-amd64 stands for"""
    for attempt in range(2):
        shown = subprocess.run(['apt-cache', 'depends', 'linux-image-cloud-amd64'], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, check=False).stdout.decode()
        found = re.search(r'Depends: (linux-image-\S+)', shown)
        if found:
            return found.group(1)
        if attempt == 0 and os.geteuid() == 0:
            subprocess.run(['apt-get', 'update', '-q'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           check=False)
    raise Skipped('apt knows no package linux-image-cloud-amd64 here (apt-get update, as root)')


class Initramfs:
    """An archive of the "newc" kind, written from names and bytes, so that devices and owners need no root."""

    def __init__(self):
        self.parts, self.folders, self.inode = [], set(), 0

    def add(self, name, mode, data=b'', device=(0, 0)):
        name = name.strip('/')
        if os.path.dirname(name):
            self.folder(os.path.dirname(name))
        self.inode += 1
        head = '070701' + ''.join('%08x' % field for field in (
            self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, device[0], device[1], len(name) + 1, 0))
        entry = head.encode() + name.encode() + b'\0'
        self.parts += [entry.ljust((len(entry) + 3) & ~3, b'\0'), data.ljust((len(data) + 3) & ~3, b'\0')]

    def folder(self, name):
        if name and name not in self.folders:
            self.folders.add(name)
            self.add(name, stat.S_IFDIR | 0o755)

    def file(self, name, data, mode=0o644):
        self.add(name, stat.S_IFREG | mode, data.encode() if isinstance(data, str) else data)

    def copy(self, name, path):
        with open(path, 'rb') as file:
            self.file(name, file.read(), os.stat(path).st_mode & 0o777)

    def link(self, name, to):
        self.add(name, stat.S_IFLNK | 0o777, to.encode())

    def busybox(self, init):
        """A system of busybox alone, with folders to mount on and a console."""
        self.copy('bin/busybox', busybox())
        for applet in run(busybox(), '--list').decode().split():
            if applet != 'busybox':
                self.link('bin/' + applet, 'busybox')
        for name in ('proc', 'sys', 'dev', 'tmp', 'run', 'mnt', 'root'):
            self.folder(name)
        self.add('dev/console', stat.S_IFCHR | 0o600, device=(5, 1))
        self.file('init', init, 0o755)

    def modules(self, paths):
        """-> shell commands that load them"""
        lines = []
        for path in paths:
            self.copy('lib/modules/' + os.path.basename(path), path)
            lines.append('insmod /lib/modules/' + os.path.basename(path))
        return '\n'.join(lines) + '\n'

    def program(self, path, stripped=None):
        """A dynamically linked program with its libraries, all in places of their own names; `stripped` is what to copy."""
        self.copy('bin/' + os.path.basename(path), stripped or path)
        for line in run('ldd', path).decode().splitlines():
            found = re.search(r'(/\S+) \(0x', line)
            if found and found.group(1) not in self.folders:
                self.folders.add(found.group(1))
                self.copy(found.group(1), os.path.realpath(found.group(1)))

    def write(self, path, packed=True):
        self.add('TRAILER!!!', 0)
        data = b''.join(self.parts)
        with open(path, 'wb') as file:
            file.write(gzip.compress(data, 1, mtime=0) if packed else data)
        return path


def busybox():
    path = shutil.which('busybox', path='/bin:/usr/bin')
    if not path:
        raise Skipped('busybox is missing (Debian package busybox-static): scripts/setup')
    if b'not a dynamic' not in subprocess.run(['ldd', path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                              check=False).stdout:
        raise Skipped('busybox is dynamically linked (want the Debian package busybox-static)')
    return path


L2_INITRD_INIT = '''\
#!/bin/sh
mount -t devtmpfs dev /dev
%(insmod)s
for i in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; usleep 100000; done
mount -t ext4 /dev/vda /mnt || { echo L2 NO-ROOT; poweroff -f; }
exec switch_root /mnt /init
'''

# The guest's own life: it counts its starts, proves its files, counts on in a process whose number is kept in memory
# only, and does what it is told on the serial port.
L2_ROOT_INIT = '''\
#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs run /run
stty -F /dev/ttyS0 -echo 2>/dev/null
dmesg -n 1
echo $(($(cat /starts) + 1)) >/starts
sync
echo "L2 START $(cat /starts) CPUS $(nproc)"
verify() { (cd /data && sha256sum -c /manifest >/run/sums 2>&1) && echo "L2 FILES $(wc -l </manifest) $1" ||
	echo "L2 FILES BAD $1"; }
verify boot
( n=0; while :; do n=$((n + 1)); echo "L2 COUNT $n"; usleep 200000; done ) &
off() { mount -o remount,ro /; sync; echo "L2 OFF"; poweroff -f; }
blocked() { dmesg -n 8; echo w >/proc/sysrq-trigger; dmesg -n 1; cat /sys/block/vda/inflight /proc/interrupts; }
( head -c 24 /dev/input/event0 >/dev/null 2>&1 && { echo "L2 BUTTON"; blocked; off; } ) &
while read -r line; do
	eval "$line"
	echo "L2 DID $?"
done </dev/ttyS0
sleep 1000000
'''


def linux_initrd(kernel, path):
    """What brings up the disk and goes over to it."""
    archive = Initramfs()
    lines = archive.modules(kernel.modules(VIRTIO_MODULES + BUTTON_MODULES))
    archive.busybox(L2_INITRD_INIT % {'insmod': lines})
    return archive.write(path)


def linux_root(path, mib=48, nr_files=300):
    """A raw ext4 disk: busybox, and files whose sums it knows."""
    need(('mke2fs', 'e2fsprogs'))
    rng = random.Random(4)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as root:
        for name in ('bin', 'data', 'proc', 'sys', 'dev', 'tmp', 'run', 'mnt', 'root'):
            os.mkdir(os.path.join(root, name))
        shutil.copy(busybox(), root + '/bin/busybox')
        for applet in run(busybox(), '--list').decode().split():
            if applet != 'busybox':
                os.symlink('busybox', root + '/bin/' + applet)
        sums = []
        for number in range(nr_files):
            data = rng.randbytes(rng.randrange(1, 40000))
            with open('%s/data/file%d' % (root, number), 'wb') as file:
                file.write(data)
            sums.append('%s  file%d\n' % (hashlib.sha256(data).hexdigest(), number))
        for name, text in (('manifest', ''.join(sums)), ('starts', '0\n'), ('init', L2_ROOT_INIT)):
            with open(os.path.join(root, name), 'w', encoding='ascii') as file:
                file.write(text)
        os.chmod(root + '/init', 0o755)
        run('mke2fs', '-q', '-F', '-t', 'ext4', '-E', 'root_owner=0:0', '-d', root, path, '%dM' % mib,
            env=sbin_env())
    return path


# ---- a machine with KVM inside QEMU ----

L1_INIT = '''\
#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
dmesg -n 1
%(insmod)s
for i in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; usleep 100000; done
mount -t ext4 /dev/vda /mnt || echo "L1 NO-DISK"
[ -e /dev/kvm ] || echo "L1 NO-KVM"
echo "L1 UP $(cut -d' ' -f1 /proc/uptime)"
cd /mnt
sh ./proof
echo "L1 END $?"
cd /
umount /mnt || mount -o remount,ro /mnt
sync
poweroff -f
'''


def nested_initrd(kernel, path, programs):
    archive = Initramfs()
    lines = archive.modules(kernel.modules(VIRTIO_MODULES + KVM_MODULES))
    archive.busybox(L1_INIT % {'insmod': lines})
    for program in programs:
        archive.program(program)
    return archive.write(path)


def work_disk(path, files, mib):
    """An ext4 disk with these files, {name: path or text}; taken out again by take_file()."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as root:
        for name, content in files.items():
            if os.path.exists(content):
                run('cp', '--sparse=always', content, os.path.join(root, name))
            else:
                with open(os.path.join(root, name), 'w', encoding='ascii') as file:
                    file.write(content)
        run('mke2fs', '-q', '-F', '-t', 'ext4', '-E', 'root_owner=0:0', '-d', root, path, '%dM' % mib, env=sbin_env())
    return path


def take_file(disk, name, to):
    run('debugfs', '-R', 'dump /%s %s' % (name, to), disk, env=sbin_env())
    if not os.path.exists(to):
        raise RuntimeError('%s is not on the work disk' % name)
    return to


def sbin_env():
    return dict(os.environ, PATH=os.environ.get('PATH', '') + ':/usr/sbin:/sbin')


def nested_command(kernel, initrd, disk, mib=1024, cpus=1):
    """QEMU as a machine whose processor has SVM, emulated: needs nothing of this machine. A kernel that sets its timer for
    each tick has stopped there for good, when one tick got lost; a periodic timer's next tick comes."""
    need(('qemu-system-x86_64', 'qemu-system-x86'))
    return ['qemu-system-x86_64', '-accel', 'tcg', '-cpu', 'EPYC,+svm', '-m', str(mib), '-smp', str(cpus),
            '-nodefaults', '-display', 'none', '-no-reboot', '-serial', 'stdio', '-kernel', kernel.vmlinuz,
            '-initrd', initrd, '-append', 'console=ttyS0 quiet panic=-1 no_timer_check nohz=off highres=off',
            '-drive', 'file=%s,format=raw,if=virtio,cache=unsafe' % disk]
