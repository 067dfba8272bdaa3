# Progress: a bar on a terminal, JSON lines on demand, nothing with -q or into a file; stdout holds the result alone.
# long enough that there is something to show, also under a wrapper that makes everything slow
bytes=$((${IMGTOOL_WRAPPER:+1}0 ? 16777216 : 1073741824))
truncate -s $bytes a.raw
expect 0 imgtool checksum a.raw
[[ ! -s err ]] || fail "progress into a file that nobody asked for"
cp out result
expect 0 imgtool checksum -p a.raw
cmp out result
tr '\r' '\n' <err | grep -c -E '^checksum \[#*\.*\] +[0-9]+%  [0-9.]+ [KMG]iB/s  [0-9]+:[0-9][0-9] left' | awk '{ print ($1 > 0) }'
tail -c 4 err | od -An -c
expect 0 imgtool checksum --progress=json a.raw
cmp out result
/usr/bin/python3 - $bytes <<'PY'
import json, sys
size = int(sys.argv[1])
lines = [json.loads(l) for l in open("err")]
assert lines[-1]["state"] == "done" and all(l["state"] == "running" for l in lines[:-1])
assert all(l["verb"] == "checksum" and l["total_bytes"] == size for l in lines)
done = [l["done_bytes"] for l in lines]
assert done == sorted(done) and done[-1] == size and len(done) > 1
print(sorted(lines[0]))
PY
expect 0 imgtool checksum -q --progress=json a.raw
cmp out result
[[ ! -s err ]] || fail "-q is not quiet"
expect 2 imgtool checksum --progress=loud a.raw

# On a terminal of 60 columns.
/usr/bin/python3 - "${tool[@]}" checksum a.raw <<'PY'
import fcntl, os, pty, struct, subprocess, sys, termios
ours, theirs = pty.openpty()
fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
p = subprocess.Popen(sys.argv[1:], stderr=theirs, stdout=subprocess.PIPE)
os.close(theirs)
text = b""
try:
    while part := os.read(ours, 4096):
        text += part
except OSError:
    pass
assert p.stdout.read() == open("result", "rb").read() and p.wait() == 0
bars = [b for b in text.split(b"\r") if b.startswith(b"checksum")]
assert bars and all(len(b.replace(b"\x1b[K", b"")) < 60 for b in bars), text
assert text.endswith(b"\r\x1b[K")
PY
