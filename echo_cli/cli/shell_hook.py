"""The shell function behind `echo train …` at an interactive prompt.

No program called `echo` is installed: the shell's builtin takes precedence over it, and an `echo` on PATH would
corrupt the output of make, xargs and terminal environments. Instead, this function shadows the builtin at the
prompt. A call is routed to `echo-cli` if it is typed at the prompt itself (not inside a function, a script or a
sourced file) and reads as an echo-cli command line:

- `sweep-lambda …` and `eval-heldout …`: always, since no text begins this way;
- `train …` and `plot …`: when the next word is an option, a `key.path=value` or an existing path;
- `train` and `plot` alone: when standard output is a terminal.

zsh and fish do not route inside a command substitution; bash does.

Everything else goes to the builtin with its arguments untouched. Install it with
`eval "$(echo-cli shell-hook bash)"` (or zsh), or `echo-cli shell-hook fish | source`.
"""

from __future__ import annotations

from echo_cli.errors import EchoError

# The function sets no option and no variable, so that the builtin runs in an unchanged shell. It uses `[`, because
# `shopt -s nocasematch` changes the result of `[[`. bash and zsh share it; its body is plain POSIX.
_ROUTES = """\
function _echo_cli_routes {
  if [ "${1-}" = sweep-lambda ] || [ "${1-}" = eval-heldout ]; then return 0; fi
  if [ "${1-}" != train ] && [ "${1-}" != plot ]; then return 1; fi
  if [ "$#" -eq 1 ]; then
    if [ -t 1 ]; then return 0; else return 1; fi
  fi
  if [ -e "$2" ]; then return 0; fi
  case "$2" in
    -[A-Za-z]* | --[A-Za-z]*) return 0 ;;
    *=*) ;;
    *) return 1 ;;
  esac
  case "${2%%=*}" in
    "" | [!A-Za-z_]* | *[!A-Za-z0-9_.]* | *..* | *.) return 1 ;;
    *) return 0 ;;
  esac
}
"""

# `function echo {`, not `echo() {`, in which an alias named echo would be expanded.
# In $-, i means that the shell is interactive, and c that it was started with -c. FUNCNAME also counts `source` and a
# script's main. Nothing tells a function whether it runs in `$(…)` or in a pipeline, so bash routes in both.
_BASH = f"""\
{_ROUTES}
function echo {{
  case "$-" in
    *c*) ;;
    *i*)
      if [ "${{#FUNCNAME[@]}}" -eq 1 ] && _echo_cli_routes "$@"; then
        command echo-cli "$@"
        return
      fi
      ;;
  esac
  builtin echo "$@"
}}
"""

# ZSH_EVAL_CONTEXT names every function, file, eval, command substitution and -c between the prompt and this point.
# shinstdin: `zsh -i file` is interactive too, but reads no prompt.
_ZSH = f"""\
{_ROUTES}
function echo {{
  if [[ -o interactive && -o shinstdin ]] && [ "$ZSH_EVAL_CONTEXT" = toplevel:shfunc ] && _echo_cli_routes "$@"; then
    command echo-cli "$@"
    return
  fi
  builtin echo "$@"
}}
"""

# `status stack-trace` starts each frame at the margin and indents its call site; the two expected frames are this
# function and the command substitution. The text is localised, so frames are counted, not parsed.
# `command test`: fish's own `test -t 1` asks about the shell's standard output, not the function's.
_FISH = """\
function _echo_cli_routes
    contains -- "$argv[1]" sweep-lambda eval-heldout; and return 0
    contains -- "$argv[1]" train plot; or return 1
    if not set -q argv[2]
        command test -t 1
        return
    end
    test -e "$argv[2]"; and return 0
    string match -qr '^(--?[A-Za-z]|[A-Za-z_][A-Za-z0-9_]*(\\.[A-Za-z0-9_]+)*=)' -- "$argv[2]"
end

function echo --description 'echo, and echo-cli for its commands at the prompt'
    if status is-interactive
        and _echo_cli_routes $argv
        and test (status stack-trace | string match -r '^\\S' | count) -eq 2
        command echo-cli $argv
        return
    end
    builtin echo $argv
end
"""

_HOOKS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def shell_hook(shell: str) -> str:
    """Return the source that defines `echo` and its helper `_echo_cli_routes` in bash, zsh or fish.

    Raises:
        EchoError: there is no hook for `shell`.
    """
    if shell not in _HOOKS:
        raise EchoError(f"no shell hook for {shell!r}", f"choose one of: {', '.join(_HOOKS)}")
    return _HOOKS[shell]
