"""Numbers that planning assumes where nothing has been measured yet. All in one place, so that they can be measured.

`constants.json` holds what is fitted to finished runs (the law, batch and context rules); here is what concerns the
machine and the course of a run. "cpu" and "cuda" are torch's device types.
"""

from __future__ import annotations

# -- speed ----------------------------------------------------------------------------------------------------------

# Share of the matrix-product peak that training is taken to reach until a size has been measured. The CPU's is of the
# smallest sizes (0.14 at 0.2M, 0.2 at 0.35M, bfloat16, two cores); larger ones do better.
EFFICIENCY = {"cpu": 0.2, "cuda": 0.4}
# How many times slower the first measurement may turn out than EFFICIENCY promises and still stay in its allowance.
UNKNOWN_MACHINE = 2
# Parameters built and initialised a second before a measurement.
BUILDING_RATE = 5e7
# Measuring, compiling included, takes at most this share of the time that training has.
MEASURING_SHARE = 0.05
# Sizes near the optimum that are timed, and micro-batches that are timed for each after one to warm up.
MEASURED_SIZES = 3
TIMED_PASSES = 2
# What the first pass costs, in passes: memory is asked for and kernels are chosen.
FIRST_PASS = 2.0

# -- batches --------------------------------------------------------------------------------------------------------

# Tokens of a micro-batch where memory allows: activations that still fit caches on a CPU, enough to fill a GPU.
MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}

# -- memory ---------------------------------------------------------------------------------------------------------

# Weight, gradient and two moments in float32.
PARAMETER_BYTES = 16
# Kept for the backward pass, a token, a layer and a unit of width: 120 to 144 measured from 5M to 16M parameters in
# float32 and bfloat16 (peak resident memory of two steps, CPU), the model's head and loss counted in.
ACTIVATION_BYTES = 140
# Of the process without any model: libraries, and on a GPU their context and the logits in flight.
PROCESS_BYTES = {"cpu": 0.5e9, "cuda": 2.0e9}
# Of the memory that is free when planning, what training may take; the rest is for others.
FREE_SHARE = 0.8

# -- the course of a run --------------------------------------------------------------------------------------------

# Held-out evaluations a run, the last one included, the share of the time for all of them, and the least that one
# reads: fewer tokens say little.
EVALUATIONS = 3
EVALUATION_SHARE = 0.04
EVALUATION_TOKENS = 8192
# A checkpoint: a fixed part, and the bytes of weights and two moments a parameter at the rate of an ordinary disk.
CHECKPOINT_SECONDS = 0.2
CHECKPOINT_BYTES = 12
CHECKPOINT_RATE = 3e8
# Samples and the report, after the last step.
CLOSING_SECONDS = 2.5
# Training below which compiling is not even tried: about a minute of compiling is MEASURING_SHARE of it.
COMPILE_WORTH_TRYING = 1200.0
