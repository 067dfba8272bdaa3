#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
libvhdi's opinion of a VHDX (Debian package python3-libvhdi).

    vhdx_libvhdi.py FILE [PARENT...]    sha256 of what the guest sees; exit 77 without libvhdi
"""
import hashlib
import sys

try:
    import pyvhdi
except ImportError:
    print('SKIPPED: no libvhdi, the Debian package python3-libvhdi')
    sys.exit(77)


def main():
    files = []
    for path in sys.argv[1:]:
        file = pyvhdi.file()
        file.open(path)
        if files:
            files[-1].set_parent(file)
        files.append(file)
    digest = hashlib.sha256()
    size = files[0].get_media_size()
    for off in range(0, size, 1 << 20):
        digest.update(files[0].read_buffer_at_offset(min(1 << 20, size - off), off))
    print(digest.hexdigest())
    return 0


if __name__ == '__main__':
    sys.exit(main())
