# Who may be opened because an image names it: by default what lies in its folder.
mkdir -p in/sub elsewhere
imgtool create -f raw elsewhere/base.raw 1M
imgtool create -f raw in/sub/base.raw 1M
run imgtool create -F raw -b sub/base.raw in/near.limg
run imgtool create -F raw -b ../elsewhere/base.raw in/far.limg
run imgtool create --allow-refs any -F raw -b ../elsewhere/base.raw in/far.limg
run imgtool create --allow-refs none -F raw -b sub/base.raw in/none.limg
run imgtool read in/near.limg --length 0
run imgtool read --allow-refs none in/near.limg --length 0
run imgtool read in/far.limg --length 0
run imgtool read --allow-refs dir in/far.limg --length 0
run imgtool read --allow-refs any in/far.limg --length 0
run imgtool info --chain in/far.limg
imgtool info --json in/far.limg | json 'd["backing"]["name"]'
run imgtool convert in/far.limg x.raw
ln -s ../../elsewhere/base.raw in/sub/link.raw
run imgtool create -F raw -b sub/link.raw in/link.limg
# A name that acts on a terminal.
evil=$'in/e\e[31mvil\xe2\x80\xae.raw'
imgtool create -f raw "$evil" 1M
imgtool create -F raw -b "${evil#in/}" in/evil.limg
imgtool info in/evil.limg | grep backing
imgtool info --json in/evil.limg | grep '"name"'
rm "$evil"
expect 3 imgtool read in/evil.limg --length 0
grep -c -P '[\x00-\x08\x0b-\x1f\x7f]|\xe2\x80\xae' err || true
