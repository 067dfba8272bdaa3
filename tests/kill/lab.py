# SPDX-License-Identifier: MIT
"""What kill.py and its verbs share: the tool, the folder with prepared images, one round on a copy of them."""
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
IMGTOOL = os.environ.get('IMGTOOL', 'imgtool')
INTEROP = os.path.join(HERE, '..', 'interop')
READER = os.path.join(INTEROP, 'limg_reader.py')
PLAIN = ('vdi', 'vhd', 'vhdx', 'vmdk', 'parallels')    # formats without snapshots and compression, in which a kill may leave leaks
ALONE = ('parallels',)    # formats without parents
# What can be asked for beside a format: images in several files.
SEVERAL = {
    'vmdk-split': ('vmdk', 'subformat=twoGbMaxExtentSparse,extent_size=16M'),
    'vmdk-flat': ('vmdk', 'subformat=twoGbMaxExtentFlat,extent_size=16M'),
    'bundle': ('parallels', 'subformat=bundle,split_size=16M'),
}
BACKED = ('limg', 'qcow2', *(f for f in PLAIN if f not in ALONE))
DISK = 48 << 20
SECTOR = 512
CHANGES = 'pwrite64,pwritev,pwritev2,ftruncate,fallocate,fdatasync,fsync,rename,renameat2,link,linkat,unlink'


class Failed(Exception):
    pass


BUSY, BUSY_SECONDS = 5, 3


def run(*args, stdin=None, want=0):
    # The broker of one that was killed ends by itself, a moment later, and may have a file open until then.
    end = time.monotonic() + BUSY_SECONDS
    done = subprocess.run([IMGTOOL, *args], input=stdin, capture_output=True, check=False)
    while done.returncode == BUSY and want != BUSY and time.monotonic() < end:
        time.sleep(.05)
        done = subprocess.run([IMGTOOL, *args], input=stdin, capture_output=True, check=False)
    if want is not None and done.returncode != want:
        raise Failed('imgtool %s ended with %d, not %d: %s' % (' '.join(args), done.returncode, want,
                                                             done.stderr.decode(errors='replace').strip()))
    return done


def digest(data):
    return hashlib.sha256(data).hexdigest()


class Round:
    """One verb on one copy of the prepared files."""

    def __init__(self, lab, rng):
        self.lab, self.rng = lab, rng
        self.left = False    # an image has something to repair
        self.dir = os.path.join(lab.dir, 'round')
        shutil.rmtree(self.dir, ignore_errors=True)
        os.mkdir(self.dir)
        files = [e.path for e in os.scandir(lab.dir) if e.is_file()]
        subprocess.run(['cp', '--sparse=always', '-p', *files, self.dir], check=True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def started(self, args, stdin, tracer=()):
        env = dict(os.environ)
        if tracer:    # the leak sanitizer wants to be the tracer itself
            env['ASAN_OPTIONS'] = env.get('ASAN_OPTIONS', '') + ':detect_leaks=0'
        with open(stdin or os.devnull, 'rb') as file:
            return subprocess.Popen([*tracer, IMGTOOL, *args], stdin=file, stdout=subprocess.DEVNULL,
                                    stderr=subprocess.PIPE, env=env)

    def killed(self, verb, *args, stdin=None):
        """Starts imgtool and kills it, at a random moment or at a random change of a file; True if it had ended by itself."""
        if self.lab.strace and self.rng.random() < .6:
            proc, errors = self.killed_at_call(verb, args, stdin)
        else:
            proc, errors = self.killed_in_time(verb, args, stdin)
        return self.ended(proc, errors, args)

    def killed_at_call(self, verb, args, stdin):
        """Short verbs are over before a clock says anything: the kill comes with one of the calls that change files."""
        nr = self.lab.calls.get(verb, 8)
        when = self.rng.randint(1, nr)
        tracer = ['strace', '-f', '-qq', '-o', os.devnull, '-e', 'trace=' + CHANGES,
                  '-e', 'inject=%s:signal=KILL:when=%d' % (CHANGES, when)]
        proc = self.started(args, stdin, tracer)
        errors = proc.communicate()[1]
        if proc.returncode == -9:
            self.lab.at_call += 1
            self.lab.calls[verb] = max(nr, when * 3 // 2 + 1)
        else:
            self.lab.calls[verb] = max(1, when - 1)
        return proc, errors

    def killed_in_time(self, verb, args, stdin):
        span = self.lab.duration.get(verb, .05)
        started = time.monotonic()
        proc = self.started(args, stdin)
        try:
            proc.wait(max(0.0005, self.rng.random() * span))
        except subprocess.TimeoutExpired:
            proc.kill()
        errors = proc.communicate()[1]
        if proc.returncode == 0:
            self.lab.duration[verb] = (time.monotonic() - started + span) / 2
        return proc, errors

    def ended(self, proc, errors, args):
        self.lab.killed += proc.returncode == -9
        for name in ('base.img', 'over.img'):
            self.lab.dirty += json.loads(run('info', '--json', self.path(name)).stdout)['dirty']
        if proc.returncode not in (0, -9):
            raise Failed('imgtool %s ended with %d: %s'
                         % (' '.join(args), proc.returncode, errors.decode(errors='replace')))
        return proc.returncode == 0

    def beside(self, name):
        """The data files of an image, that have their names."""
        return sorted(n for n in os.listdir(self.dir) if n.startswith(name) and n != name)

    def content(self, name, snap=None):
        """The whole content, through the tool."""
        out = self.path('out.raw')
        run('convert', '-q', '-O', 'raw', '--force', self.path(name) + ('@' + snap if snap else ''), out)
        with open(out, 'rb') as file:
            data = file.read()
        os.unlink(out)
        return data

    def check(self, *names, reader=False):
        for name in names:
            if self.lab.format == 'qcow2':
                self.check_qcow2(name)
                continue
            if self.lab.format in PLAIN:
                self.left |= self.check_plain(name)
                continue
            run('check', '-q', self.path(name))
            if reader:
                done = subprocess.run(['/usr/bin/python3', READER, 'verify', self.path(name)], capture_output=True,
                                      check=False)
                if done.returncode:
                    raise Failed('limg_reader.py verify %s: %s' % (name, done.stderr.decode(errors='replace').strip()))

    def check_qcow2(self, name):
        """Leaks at worst, to us and to qemu-img; half of them are repaired, and the others stay for what comes next."""
        path = self.path(name)
        found = json.loads(run('check', '--json', path, want=None).stdout)
        theirs = subprocess.run(['qemu-img', 'check', '-q', '-f', 'qcow2', path], capture_output=True, check=False)
        # qemu-img does not look at refcounts of what lies behind the end of the file, where a cluster was to come.
        inside = any(f['kind'] == 'leak' and (f['file_offset'] or 0) < os.path.getsize(path) for f in found['findings'])
        if found['damage'] or theirs.returncode not in (0, 3) or inside != (theirs.returncode == 3):
            raise Failed('%s: imgtool check finds %d damage and %d leaks, qemu-img check ends with %d: %s %s' % (
                name, found['damage'], found['leaks'], theirs.returncode, found['findings'][:3],
                theirs.stderr.decode(errors='replace')[:300]))
        self.lab.leaky += found['leaks'] > 0
        if found['leaks'] and self.rng.random() < .5:
            run('check', '-q', '--repair', path)
            run('check', '-q', path)

    def check_plain(self, name):
        """
        Leaks and a lost spare copy at worst, half of which are repaired; without any the format's independent reader agrees,
        which looks at parents, too. Returns true where some were left.
        """
        path = self.path(name)
        found = json.loads(run('check', '--json', path, want=None).stdout)
        if found['damage']:
            raise Failed('%s: check finds %s' % (name, found['findings'][:3]))
        loose = found['leaks'] + found['redundancy'] + sum(f['rule'] in ('VHD-15', 'VMDK-9') for f in found['findings'])
        self.lab.leaky += loose > 0
        if loose and self.rng.random() < .5:
            return True
        if loose:
            run('check', '-q', '--repair', path)
            run('check', '-q', path)
        if self.left:
            return False
        reader = os.path.join(INTEROP, self.lab.format + '_reader.py')
        done = subprocess.run(['/usr/bin/python3', reader, 'verify', path], capture_output=True, check=False)
        if done.returncode:
            raise Failed('%s: %s' % (reader, done.stderr.decode(errors='replace').strip()))
        return False

    def snapshots_whole(self, names=('one', 'two')):
        for snap in names if self.lab.snaps else ():
            if digest(self.content('base.img', snap)) != self.lab.snaps[snap]:
                raise Failed('snapshot %s has changed' % snap)

    def snapshot_names(self):
        lines = run('snapshot', 'list', '--json', self.path('base.img')).stdout
        return lines.decode()


class Lab:
    """A folder with the prepared files."""

    def __init__(self, folder, rng, writer, kind):
        self.writer = writer
        self.several = kind in SEVERAL
        self.format, options = SEVERAL.get(kind, (kind, ''))
        self.alone = self.format in ALONE or kind == 'vmdk-flat'
        format_ = self.format
        self.make = ('-o', options) if options else ()    # for create and convert
        self.dir = tempfile.mkdtemp(prefix='kill.', dir=folder)
        self.duration = {}
        self.killed = self.dirty = self.leaky = 0    # rounds in which it was killed; images to replay, or with leaks
        self.strace = shutil.which('strace')
        self.calls, self.at_call = {}, 0    # calls that a verb makes, learned; rounds that were killed at one
        self.no_device = False
        self.orphans = 0    # rounds that left data files without their image
        write = lambda name, data: open(os.path.join(self.dir, name), 'wb').write(data)    # noqa: E731
        base, over = os.path.join(self.dir, 'base.img'), os.path.join(self.dir, 'over.img')
        first = bytearray(DISK)
        first[0:12 << 20] = rng.randbytes(12 << 20)
        first[20 << 20:28 << 20] = (b'the quick brown fox %d ' % rng.randrange(1000)) * 400000
        first = bytes(first[:DISK])
        write('src.raw', first)
        write('new.bin', rng.randbytes(6 << 20))
        self.compress = () if format_ in PLAIN else ('-c', 'zstd')
        run('convert', '-q', '-O', format_, *self.make, *self.compress, os.path.join(self.dir, 'src.raw'), base)
        self.snaps = {}
        self.snapshot(base, 'one', first)
        run('write', '-q', base, '--offset', str(4 << 20), stdin=rng.randbytes(9 << 20))
        self.snapshot(base, 'two', self.plain(base))
        run('write', '-q', base, '--offset', str(19 << 20), stdin=rng.randbytes(5 << 20))
        self.head = self.plain(base)
        run('create', '-q', '-f', format_, *self.make, *((over, str(DISK)) if self.alone else ('-b', 'base.img', over)))
        run('write', '-q', over, '--offset', str(1 << 20), stdin=rng.randbytes(8 << 20))
        run('write', '-q', over, '--offset', str(30 << 20), stdin=rng.randbytes(4 << 20))
        self.over = self.plain(over)
        other = os.path.join(self.dir, 'other.img')
        run('convert', '-q', '-O', format_, *self.make, base, other)
        run('write', '-q', other, '--offset', str(40 << 20), stdin=rng.randbytes(3 << 20))

    def snapshot(self, path, name, content):
        if self.format not in PLAIN:
            run('snapshot', 'create', path + '@' + name)
            self.snaps[name] = digest(content)

    def plain(self, path):
        out = os.path.join(self.dir, 'out.raw')
        run('convert', '-q', '-O', 'raw', '--force', path, out)
        with open(out, 'rb') as file:
            data = file.read()
        os.unlink(out)
        return data
