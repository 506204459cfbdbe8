# shellcheck shell=bash disable=SC2154
# Server processes of one folder: started in the background, waited for, stopped by their own ids. Sourced; needs
# $folder. FOLDER/pids/NAME holds "PID START SIGNAL", FOLDER/NAME.log what the server printed.

# A pid may belong to another process by the time of the stop; pid and start time together do not.
start_time_of() {
    sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20
}

is_running() {
    local pid start
    read -r pid start _ <"$1" && [ -n "$start" ] && [ "$(start_time_of "$pid")" = "$start" ]
}

# launch NAME STOP_SIGNAL COMMAND…: in a session of its own, so that a Ctrl-C for the tests leaves the stopping to us.
launch() {
    local name=$1 signal=$2
    shift 2
    setsid "$@" >"$folder/$name.log" 2>&1 </dev/null &
    echo "$! $(start_time_of $!) $signal" >"$folder/pids/$name"
}

# wait_until NAME SECONDS COMMAND…: until the command succeeds. A server that died is noticed at once.
wait_until() {
    local name=$1 seconds=$2 problem=""
    shift 2
    local deadline=$((SECONDS + seconds))
    until "$@" >/dev/null 2>&1; do
        if ! is_running "$folder/pids/$name"; then
            problem="ended by itself"
        elif [ "$SECONDS" -ge "$deadline" ]; then
            problem="does not answer after $seconds s ($*)"
        fi
        if [ -n "$problem" ]; then
            echo "$name $problem. The end of $folder/$name.log:" >&2
            tail -n 25 "$folder/$name.log" >&2
            return 1
        fi
        sleep 0.2
    done
}

# Stops every process that was launched from $folder: all are asked first, then each is waited for, and killed at last.
stop_processes() {
    local file pid start signal deadline
    for file in "$folder"/pids/*; do
        [ -e "$file" ] || continue
        read -r pid start signal <"$file"
        if is_running "$file"; then
            kill -s "$signal" "$pid" 2>/dev/null || true
        fi
    done
    deadline=$((SECONDS + 20))
    for file in "$folder"/pids/*; do
        [ -e "$file" ] || continue
        while is_running "$file" && [ "$SECONDS" -lt "$deadline" ]; do
            sleep 0.1
        done
        if is_running "$file"; then
            read -r pid start signal <"$file"
            echo "$(basename "$file") did not stop within 20 s of SIG$signal: killed" >&2
            kill -s KILL "$pid" 2>/dev/null || true
        fi
        rm -f "$file"
    done
}
