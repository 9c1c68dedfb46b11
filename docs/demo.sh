#!/usr/bin/env bash
# `make demo`: all steps from simulated mice to a prediction over HTTP. Run it again to resume after an interruption.
set -euo pipefail

PYTHON=${PYTHON:-python3}
DEMO=${DEMO:-runs/demo}                 # recordings, checkpoints and scores
DEMO_BUNDLE=${DEMO_BUNDLE:-$DEMO/bundle}
PORT=${PORT:-3117}
recordings=$DEMO/recordings

run() {
    printf '\n\033[1m$ %s\033[0m\n' "${*//$PYTHON/python}"
    "$@"
}

run "$PYTHON" -m training simulate --output "$recordings" --mice 2 --mouse-prefix SIM --neurons 150 \
    --train-trials 1500 --seed 0

# A small V1T: patches of 12 pixels with stride 4, 2 blocks of 2 heads, width 48; an ensemble of 3. A run of about 2,000
# updates needs a higher learning rate than the paper's, with warm-up, and a smaller beta2 of AdamW (0.99, not 0.9999).
# Such a small model gains little from a second thread, so the members are trained side by side.
run "$PYTHON" -m training train --recordings "$recordings" --output "$DEMO/run" --members 3 --parallel 3 --set \
    core.patch_size=12 core.patch_stride=4 core.n_blocks=2 core.n_heads=2 core.dim=48 core.mlp_dim=96 \
    core.patch_dropout=0 core.block_dropout=0.05 core.l1=0.01 readout.l1=0.05 \
    training.learning_rate=0.006 training.warmup=300 training.beta2=0.99 training.max_epochs=26 training.patience=2

run "$PYTHON" -m training evaluate "$DEMO/run" --recordings "$recordings" --report "$DEMO/scores"

run "$PYTHON" -m training export "$DEMO/run" --recordings "$recordings" --output "$DEMO_BUNDLE" --force \
    --name demo --licence MIT
run "$PYTHON" -m training card "$DEMO_BUNDLE" --force

printf '\n\033[1m$ bentoml serve\033[0m\n'
V1T_BUNDLES=$DEMO_BUNDLE "$PYTHON" -m bentoml serve --port "$PORT" &
server=$!
trap 'kill -TERM $server 2>/dev/null; wait $server 2>/dev/null || true' EXIT
export V1T_URL=http://127.0.0.1:$PORT
"$PYTHON" -m v1t_client ready --wait 60

run "$PYTHON" -m v1t_client predict docs/images/leaves.png --mouse SIM1 --pupil-dilation 41 --running-speed 3 --top 5

printf '\nThe twin is in %s; serve it with: V1T_BUNDLES=%s make serve\n' "$DEMO_BUNDLE" "$DEMO_BUNDLE"
