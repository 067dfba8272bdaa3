# Every verb explains itself with an example; the manual page and the completion know every verb and every option.
verbs=$(imgtool help | sed -n '/^Verbs:/,/^$/p' | sed -E -n 's/^  ([a-z]+( [a-z]+)?)  .*/\1/p')
imgtool --generate-man >imgtool.1
imgtool --generate-completion >completion
bash -n completion
nr=0
while read -r verb; do
	# shellcheck disable=SC2086 # a verb may be two words
	imgtool $verb -h >usage
	grep -q "^Usage: imgtool $verb " usage || fail "$verb: no usage line"
	grep -A 1 '^Example:' usage | grep -q "imgtool ${verb%% *}" || fail "$verb: no example"
	# shellcheck disable=SC2086
	imgtool help $verb | cmp - usage
	for option in format allow-refs quiet sandbox help; do
		grep -q -e " --$option" usage || fail "$verb has no --$option"
	done
	while read -r option; do
		grep -q -F -e "\\-\\-${option//-/\\-}\\fR" imgtool.1 || fail "$verb: --$option is not in the manual"
		grep -q -e " --$option " -e "\"--$option " completion || fail "$verb: --$option is not completed"
	done < <(grep -o -E '^ {2,6}(-., )?--[a-z-]+' usage | sed 's/.*--//')
	grep -q "^\.SS ${verb}" imgtool.1 || fail "$verb is not in the manual"
	nr=$((nr + 1))
done <<<"$verbs"
echo "$nr verbs"

# Completion, as bash calls it.
complete_words()
{
	(
		. ./completion
		COMP_WORDS=("$@")
		COMP_CWORD=$(($# - 1))
		# shellcheck disable=SC2317 # what was sourced calls it
		compopt() { :; }
		_imgtool
		printf '%s ' "${COMPREPLY[@]}"
		echo
	)
}
touch one.limg two.raw
complete_words imgtool sn
complete_words imgtool snapshot ""
complete_words imgtool snapshot de
complete_words imgtool convert --comp
complete_words imgtool convert --allow-refs ""
complete_words imgtool convert on
complete_words imgtool create -b o
complete_words imgtool checksum --algo x
# only what can be made, where something is
complete_words imgtool convert -f q
complete_words imgtool convert -O q
complete_words imgtool measure --output-format ""
complete_words imgtool help sn
complete_words imgtool help snapshot re
complete_words imgtool help convert --comp
complete_words imgtool help snapshot delete o

if command -v man >/dev/null; then
	man --warnings -l imgtool.1 2>warnings | col -b >page
	cat warnings
	grep -c -E '^   [a-z]' page >/dev/null || fail "the manual is empty"
	grep -q "EXIT STATUS" page
fi
