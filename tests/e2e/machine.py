# SPDX-License-Identifier: MIT
"""
A running imgvm as the tests see it: the guest's serial port on its standard input and output, its other ends at the
command line. IMGVM and IMGTOOL name the programs.
"""
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

from guests import BOOT_BYTES, Skipped, boot_sector

IMGTOOL = os.environ.get('IMGTOOL', 'imgtool')
IMGVM = os.environ.get('IMGVM', 'imgvm')
KVM_GET_API_VERSION = 0xae00
# Exit status of imgvm run.
OFF, BUSY, REFUSED, QUIT, TIMEOUT, RESET, STUCK = 0, 5, 6, 8, 9, 10, 11
PATIENCE = 240


class Wrong(Exception):
    pass


def call(program, args, want, stdin=None):
    done = subprocess.run([program, *args], input=stdin, stdin=None if stdin else subprocess.DEVNULL,
                          capture_output=True, check=False, timeout=PATIENCE)
    if want is not None and done.returncode != want:
        raise Wrong('%s %s ended with %d, not %d: %s' % (os.path.basename(program), ' '.join(args), done.returncode,
                                                        want, (done.stderr + done.stdout).decode(errors='replace')))
    return done


def imgtool(*args, want=0, stdin=None):
    return call(IMGTOOL, args, want, stdin)


def imgvm(*args, want=0):
    return call(IMGVM, args, want)


def claim(holds, text, *values):
    if not holds:
        raise Wrong(text % values if values else text)


def need_kvm():
    try:
        fd = os.open('/dev/kvm', os.O_RDWR)
        try:
            version = fcntl.ioctl(fd, KVM_GET_API_VERSION)
        finally:
            os.close(fd)
    except OSError as error:
        raise Skipped('/dev/kvm: %s' % error.strerror) from error
    claim(version == 12, 'KVM has version %d of its interface', version)


class Machine:
    """imgvm run; everything that the guest prints is kept."""
    all = []

    def __init__(self, image, *options, snapshot=None, command=None):
        Machine.all.append(self)
        self.image = image
        self.serial = bytearray()
        self.errors = tempfile.TemporaryFile()
        self.grown = threading.Condition()
        command = command or [IMGVM, 'run', *options, image + ('@' + snapshot if snapshot else '')]
        self.proc = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def _read(self):
        while True:
            data = os.read(self.proc.stdout.fileno(), 65536)
            with self.grown:
                self.serial += data
                self.grown.notify_all()
                if not data:
                    return

    def said(self):
        """What imgvm itself printed."""
        self.errors.seek(0)
        return self.errors.read().decode(errors='replace')

    def text(self, start=0, end=None):
        with self.grown:
            return self.serial[start:end].decode('latin-1')

    def mark(self):
        with self.grown:
            return len(self.serial)

    def send(self, text):
        self.proc.stdin.write(text.encode())
        self.proc.stdin.flush()

    def expect(self, pattern, since=0, timeout=PATIENCE):
        """Waits for it in what is printed from `since` on. -> match"""
        until = time.monotonic() + timeout
        with self.grown:
            while True:
                found = re.search(pattern, self.serial[since:].decode('latin-1'), re.M)
                if found:
                    return found
                left = until - time.monotonic()
                if left <= 0 or not self.grown.wait(min(left, 1)) and not self.reader.is_alive():
                    break
        raise Wrong('the guest did not print %r; it printed %r; imgvm: %r, status %r'
                    % (pattern, self.text(since)[-500:], self.said()[-500:], self.proc.poll()))

    def do(self, text, pattern, timeout=PATIENCE):
        since = self.mark()
        self.send(text)
        return self.expect(pattern, since, timeout)

    def quiet(self):
        """Waits until nothing has come for a moment (the guest is paused). -> mark()"""
        size = -1
        while size != self.mark():
            size = self.mark()
            time.sleep(.2)
        return size

    def control(self, verb, *args, snapshot=None, want=0):
        return imgvm(verb, *args, self.image + ('@' + snapshot if snapshot else ''), want=want)

    def status(self):
        return json.loads(self.control('status', '--json').stdout)

    def ended(self, want, timeout=PATIENCE):
        """Waits for its end, and wants this exit status."""
        try:
            got = self.proc.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Wrong('imgvm does not end; it printed %r' % self.said()[-500:]) from None
        self.reader.join()
        claim(got == want, 'imgvm ended with %r, not %r: %s', got, want, self.said()[-500:])

    def quit(self):
        self.control('quit')
        self.ended(QUIT)

    def kill(self):
        if self.proc.poll() is None:
            self.proc.send_signal(signal.SIGKILL)
            self.proc.wait()
        self.reader.join()
        self.proc.stdin.close()


# ---- what the boot sector prints ----

def ticks(text):
    return [int(number, 16) for number in re.findall(r'^T([0-9a-f]{8})\r?$', text, re.M)]


def last_tick(machine):
    machine.expect('^T[0-9a-f]{8}\n')
    return ticks(machine.text())[-1]


def consecutive(text):
    """All ticks of a text (from the guest's first one) follow each other."""
    seen = ticks(text)
    return bool(seen) and seen == list(range(seen[0], seen[0] + len(seen)))


def ask(machine):
    """-> what the guest has on its disk and in its memory"""
    found = machine.do('r', 'R note=(.{8}) first=(.{8}) last=(.{8}) boots=(.{8}) gen=(.{8})\n')
    return dict(zip(('note', 'first', 'last', 'boots', 'gen'), (int(value, 16) for value in found.groups())))


def overwrite(machine, times=1):
    for _ in range(times):
        machine.do('w', 'WROTE [0-9a-f]{8}\n')


# ---- a test program: named cases, each in a folder of its own ----

class Lab:
    def __init__(self, folder):
        self.folder = folder

    @staticmethod
    def end():
        """What machines said that are gone by themselves: it explains the failure of those who talked to them."""
        for machine in Machine.all:
            if machine.said():
                print('imgvm %s said: %s' % (machine.image, machine.said().strip()[-1000:]))
        Machine.all.clear()

    def path(self, name):
        return os.path.join(self.folder, name)

    def boot_image(self, fmt='limg', name='disk'):
        raw = boot_sector(self.path(name + '.boot'))
        image = self.path(name + '.' + fmt)
        imgtool('convert', '-q', '-f', 'raw', '-O', fmt, raw, image)
        os.unlink(raw)
        claim(int(json.loads(imgtool('info', '--json', image).stdout)['virtual_size']) == BOOT_BYTES,
              'the converted disk has another size')
        return image


def main(cases, ready=need_kvm):
    """Runs the cases that the command line names, or all. --keep leaves their folders."""
    wanted = [arg for arg in sys.argv[1:] if not arg.startswith('-')] or list(cases)
    keep = '--keep' in sys.argv
    skipped = 0
    for name in wanted:
        folder = tempfile.mkdtemp(prefix='imgvm-%s.' % name, dir=os.environ.get('TMPDIR', '/var/tmp'))
        os.environ['XDG_RUNTIME_DIR'] = folder    # the control sockets
        start = time.monotonic()
        try:
            ready()
            lab = Lab(folder)
            try:
                cases[name](lab)
            finally:
                lab.end()
            print('ok: %s (%.1f s)' % (name, time.monotonic() - start), flush=True)
        except Skipped as reason:
            skipped += 1
            print('SKIPPED: %s: %s' % (name, reason), flush=True)
        except Exception:    # pylint: disable=broad-except
            traceback.print_exc(file=sys.stdout)
            print('FAILED: %s' % name, flush=True)
            sys.exit(1)
        finally:
            if keep:
                print(name, 'files stay in', folder)
            else:
                shutil.rmtree(folder, ignore_errors=True)
    sys.exit(77 if skipped == len(wanted) else 0)
