# Sets up .venv, activates it, and makes `echo train …` work at this prompt: `source scripts/activate.fish`
# `deactivate` leaves the virtual environment again.

function _echo_cli_activate --argument-names file
    functions --erase _echo_cli_activate
    set --local root (builtin realpath (dirname $file)/..)
    or return
    bash $root/scripts/setup
    or return
    source $root/.venv/bin/activate.fish
    or return
    if status is-interactive
        set --local hook (command echo-cli shell-hook fish)
        or return
        printf '%s\n' $hook | source
    end
end

_echo_cli_activate (status filename)
