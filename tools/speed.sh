#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The speeds that README.md and jaxpost/kernels/NOTES.md speak of, on this machine's GPU, one after the other:
#
#     tools/speed.sh [train] [large] [sample] [kernels]
#
# JSON lines on standard output, each command before what it printed. About three minutes a part on an H200; no part
# named: all. PYTHON names the interpreter. What fails is said, and does not hide the rest.
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} XLA_PYTHON_CLIENT_MEM_FRACTION=0.92

run() {
    printf '$ python tools/%s\n' "$*"
    "${PYTHON:-python3}" "tools/$1" "${@:2}" || printf '{"failed": "%s", "status": %d}\n' "$*" $?
}

large=(bench_train.py --shape llama-8b --batch 4 --seq 4096 --segments 8 --steps 6)
(($#)) || set -- train large sample kernels
for part; do
    case $part in
        train)
            run bench_train.py --delta lora --remat most,result,full --steps 8
            run bench_train.py --delta lora --remat most --segments 8 --steps 8
            run bench_train.py --delta full --remat most --chunk 16384 --steps 8
            ;;
        large)
            run "${large[@]}" --remat most
            run "${large[@]}" --remat most --quant nf4
            ;;
        sample)
            run bench_sample.py
            run bench_sample.py --kv int8
            run bench_sample.py --delta lora
            ;;
        kernels)
            run bench_kernels.py --operation attention --unchecked
            run bench_kernels.py --operation decode_attention --only "llama;qwen"
            run bench_kernels.py --operation quant_matmul
            run bench_kernels.py --operation lowrank_matmul
            ;;
        *)
            printf 'error: %s is no part; there are train, large, sample and kernels\n' "$part" >&2
            exit 2
            ;;
    esac
done
