# The terminal while a machine runs on it, and that its mode comes back however the machine ends.
. "$SRCDIR/tests/cli/guest.sh"
imgtool create a.limg 1M
export IMGVM
/usr/bin/python3 - <<'END'
import os, pty, select, signal, sys, termios, time

IMGVM = os.environ["IMGVM"]

class Desk:
    """imgvm run on a terminal of its own; its session's leader, which keeps the terminal, is a child of ours."""
    def __init__(self):
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(self.master)
        there, self.pid_end = os.pipe()
        self.status_end, back = os.pipe()
        self.leader = os.fork()
        if self.leader == 0:
            os.setsid()
            os.close(os.open(os.ttyname(slave), os.O_RDWR))     # becomes the controlling terminal
            pid = os.fork()
            if pid == 0:
                for fd in (0, 1, 2):
                    os.dup2(slave, fd)
                os.execv(IMGVM, [IMGVM, "run", "--bios", "guest.rom", "--memory", "8M", "--timeout", "60", "a.limg"])
            os.write(back, b"%d\n" % pid)
            status = os.waitpid(pid, 0)[1]
            os.write(back, b"%d\n" % status)
            os._exit(0)
        self.slave = slave
        self.pid = int(self.line())
        self.seen = b""

    def line(self):
        text = b""
        while not text.endswith(b"\n"):
            text += os.read(self.status_end, 1)
        return text

    def hear(self, text):
        end = time.monotonic() + 20
        while text not in self.seen:
            if time.monotonic() > end:
                sys.exit("not heard: %r in %r" % (text, self.seen))
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096)
        self.seen = self.seen.split(text, 1)[1]

    def type(self, text):
        os.write(self.master, text)

    def is_raw(self):
        return not termios.tcgetattr(self.master)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def ended(self, what):
        status = int(self.line())
        how = "signal %d" % os.WTERMSIG(status) if os.WIFSIGNALED(status) else "status %d" % os.WEXITSTATUS(status)
        print("%s: %s, terminal %s" % (what, how, "restored" if termios.tcgetattr(self.master) == self.before else "LEFT"))
        os.waitpid(self.leader, 0)

desk = Desk()
desk.hear(b"READY")
assert desk.is_raw()
desk.type(b"abc\x03\x1a\x1c\x04")
desk.hear(b"abc\x03\x1a\x1c\x04")                              # no key but Ctrl-a means anything to us
desk.type(b"\x01\x01z")
desk.hear(b"\x01z")
desk.type(b"\x01h")
desk.hear(b"Ctrl-a x quits")
desk.type(b"\x01x")
desk.ended("Ctrl-a x")

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSEGV, signal.SIGABRT):
    desk = Desk()
    desk.hear(b"READY")
    assert desk.is_raw()
    os.kill(desk.pid, number)
    desk.ended(signal.Signals(number).name)

# A guest that ends by itself.
desk = Desk()
desk.hear(b"READY")
desk.type(b"q")
desk.ended("power-off")

# Stopped, the mode changed by the shell, and continued.
desk = Desk()
desk.hear(b"READY")
os.kill(desk.pid, signal.SIGSTOP)
termios.tcsetattr(desk.slave, termios.TCSANOW, desk.before)
assert not desk.is_raw()
os.kill(desk.pid, signal.SIGCONT)
end = time.monotonic() + 10
while not desk.is_raw() and time.monotonic() < end:
    time.sleep(0.02)
assert desk.is_raw()
desk.type(b"still")
desk.hear(b"still")
desk.type(b"\x01x")
desk.ended("after SIGCONT")
END
