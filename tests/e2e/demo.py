#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
The end of scripts/demo: a machine is snapshotted while it runs, its disk is overwritten, and it is rolled back, disk
and memory together, in place and after a kill -9. IMGVM and IMGTOOL name the programs. 77: there is no KVM here.
"""
import os
import shutil
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from guests import Skipped    # noqa: E402
from machine import Lab, Machine, Wrong, ask, imgtool, imgvm, last_tick, need_kvm, overwrite, ticks    # noqa: E402


def show(command, done, started):
    print('$ ' + command)
    for line in (done.stdout + done.stderr).decode().splitlines():
        print('  ' + line)
    print('  (%.1f ms, the whole command)' % ((time.monotonic() - started) * 1000), flush=True)


def ok(holds, text):
    if not holds:
        raise Wrong(text + ': does not hold')
    print('   ok: ' + text, flush=True)


def has(machine):
    """-> the guest's disk and memory, shown"""
    found = ask(machine)
    print('   the guest says: tick %d; generation %d in its memory, %d on its disk'
          % (last_tick(machine), found['gen'], found['first']))
    return found


def back(machine, least, most):
    """The machine was snapshotted between two ticks, and is there again."""
    time.sleep(.5)
    seen = ticks(machine.text())
    turns = [after for before, after in zip(seen, seen[1:]) if after < before] or seen
    ok(least <= turns[0] <= most + 1, 'it goes on at tick %d, where the snapshot was made' % turns[0])
    found = has(machine)
    ok(found['gen'] == found['first'] == found['last'] == 1, 'memory and disk are those of the snapshot')


def demo(lab):
    image = lab.boot_image(name='vm')
    os.chdir(lab.folder)
    print('$ imgvm run vm.limg &')
    with Machine('vm.limg') as machine:
        machine.expect('^T00000008\n')
        overwrite(machine)
        has(machine)
        least = last_tick(machine)
        started = time.monotonic()
        done = imgtool('snapshot', 'create', 'vm.limg@before-deploy')
        show('imgtool snapshot create vm.limg@before-deploy', done, started)
        time.sleep(.2)    # what it printed before may still be on its way
        most = last_tick(machine)
        print('   now the guest overwrites its disk')
        overwrite(machine, 3)
        machine.expect('^T%08x\n' % (most + 30))
        found = has(machine)
        ok(found['gen'] == found['first'] == 4, 'the disk is another one')
        started = time.monotonic()
        done = imgvm('revert', 'vm.limg@before-deploy')
        show('imgvm revert vm.limg@before-deploy', done, started)
        back(machine, least, most)
        print('$ kill -9')
        machine.kill()
    print('$ imgvm run --revert vm.limg@before-deploy &')
    with Machine('vm.limg', '--revert', snapshot='before-deploy') as machine:
        back(machine, least, most)
        print('   its first output came %.1f ms after main()' % machine.status()['first_output_ms'])
        machine.quit()
    started = time.monotonic()
    show('imgtool snapshot list vm.limg', imgtool('snapshot', 'list', 'vm.limg'), started)
    ok(imgtool('check', '-q', image).returncode == 0, 'the image is whole')


def main():
    folder = tempfile.mkdtemp(prefix='imgvm-demo.', dir=os.environ.get('TMPDIR', '/var/tmp'))
    os.environ['XDG_RUNTIME_DIR'] = folder
    try:
        need_kvm()
        demo(Lab(folder))
    except Skipped as reason:
        print('no running machine is shown here:', reason)
        sys.exit(77)
    except Wrong as wrong:
        print('DEMO FAILED:', wrong, file=sys.stderr)
        sys.exit(1)
    finally:
        os.chdir('/')
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    main()
