# SPDX-License-Identifier: MIT
# Where a VHD's parent is looked for, when several paths of it are on record; and a parent that was written behind its child's back.
digest() { imgtool checksum -q "$@" 2>/dev/null | cut -d' ' -f1; }
vhd_reader() { /usr/bin/python3 -B "$SRCDIR/tests/interop/vhd_reader.py" "$@"; }

/usr/bin/python3 -B - "$SRCDIR/tests/images/gen" <<'END'
import sys
sys.path.insert(0, sys.argv[1])
from vhd_image import *
sector = lambda text: text.ljust(SECTOR, b'.')
base = Image(4 << 20, ident=b'0123456789abcdef').dynamic({n: sector(b'parent %d' % n) for n in range(40)})
base.save('base.vhd')
utf16 = lambda text: text.encode('utf-16-le')
for name, locators, last in (
        ('second', [(b'W2ku', utf16('D:\\disks\\base.vhd')), (b'W2ru', utf16('.\\gone\\base.vhd'))], ''),
        ('third', [(b'MacX', b'file://localhost/Users/me/base.vhd'), (b'W2ku', utf16('\\\\server\\x\\gone.vhd')),
                   (b'W2ru', utf16('gone\\base.vhd'))], 'C:\\x\\base.vhd'),
        ('twice', [(b'W2ru', utf16('.\\base.vhd')), (b'W2ku', utf16('C:\\base.vhd'))], 'base.vhd'),
        ('nowhere', [(b'W2ru', utf16('a.vhd')), (b'W2ku', utf16('C:\\b.vhd'))], 'c.vhd'),
        ('forbidden', [(b'W2ru', utf16('a.vhd')), (b'W2ku', utf16('/etc/b.vhd'))], 'c.vhd')):
    Image(4 << 20).differencing({3: sector(b'child')}, base.ident, locators, last).save('%s.vhd' % name)
END
details() { imgtool info --json "$1" | json '[d["backing"]["name"]] + [d["format_specific"][k] for k in sorted(d["format_specific"]) if k.startswith("parent_path")]'; }
for name in second third twice; do
	details $name.vhd
	same "$name" "$(digest $name.vhd)" "$(vhd_reader digest $name.vhd)"
done
run imgtool checksum nowhere.vhd
run imgtool checksum forbidden.vhd
# What stands first is judged, and nothing else is looked for.
mkdir gone
imgtool create -q -f vhd gone/base.vhd 4M
run imgtool checksum second.vhd
rm -r gone

# A commit records the path that led there.
before=$(digest third.vhd)
imgtool commit -q third.vhd
details third.vhd
same 'after the commit' "$(digest third.vhd)" "$before"
same 'its parent' "$(digest base.vhd)" "$before"
vhd_reader verify third.vhd

# The id of a VHD stays when it is written. The time of its file does not; but a copy has another one, too.
modified() { imgtool info --chain --json "$@" | json '[l["backing"] and l["backing"]["modified"] for l in d["chain"]]'; }
touch -d '2020-01-02 03:04:05.6' base.vhd
imgtool create -q -f vhd -b base.vhd child.vhd
modified child.vhd
imgtool write -q base.vhd --offset 100 <<<'behind the back'
modified child.vhd
imgtool info --chain child.vhd | grep -A1 ^backing:
imgtool info --json child.vhd | json 'd["backing"]["modified"]'
imgtool rebase -q --unsafe -b base.vhd child.vhd
modified child.vhd
cp base.vhd copy.vhd
touch -d '2021-01-02 03:04:05' copy.vhd
mv copy.vhd base.vhd
modified child.vhd
imgtool commit -q child.vhd
modified child.vhd
# Windows records none.
modified second.vhd

# Texts that lie outside the file: a disk with a parent is read, and not written, since blocks would come to lie there.
/usr/bin/python3 -B - "$SRCDIR/tests/images/gen" <<'END'
import struct
import sys
sys.path.insert(0, sys.argv[1])
from vhd_image import *
for name in ('difference', 'alone'):
    image = Image(4 << 20)
    if name == 'alone':
        image.dynamic({3: bytes(SECTOR)})
    else:
        image.differencing({3: bytes(SECTOR)}, b'0123456789abcdef', [(b'W2ru', 'base.vhd'.encode('utf-16-le'))], 'base.vhd')
    at = image.header_off + 576 + 24
    image.b[at:at + 24] = struct.pack('>4sIIIQ', b'W2ku', 512, 32, 0, len(image.b) + (1 << 20))
    image.b[image.header_off + 36:image.header_off + 40] = struct.pack('>I', checksum(image.b[image.header_off:image.header_off + 1024], 36))
    image.save('%s.vhd' % name)
END
run imgtool write difference.vhd --offset 0 <<<'x'
imgtool checksum -q difference.vhd | cut -d' ' -f2-
run imgtool check difference.vhd
run imgtool write -q alone.vhd --offset 3M <<<'x'
expect 0 imgtool check -q alone.vhd
