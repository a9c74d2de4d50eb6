# fish completion of pidabs, which is asked for all there is to know.

function __pidabs_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -e words[1]
    set -l answer (command pidabs completion fish ask $words (string trim -l -c '\'"' -- $current) 2>/dev/null)
    switch "$answer[1]"
        case 'command *'
            set -l skipped (string replace 'command ' '' -- $answer[1])
            for i in (seq $skipped)
                set -e words[1]
            end
            complete -C (string join -- ' ' (string escape -- $words) "$current")
        case files
            set -l option (string match -r -- '^--[a-z-]+=' $current)
            for path in (__fish_complete_path (string replace -- "$option" '' $current))
                printf '%s%s\n' "$option" $path
            end
    end
    set -e answer[1]
    string join -- \n $answer
end

complete -c pidabs -f -a '(__pidabs_complete)'
