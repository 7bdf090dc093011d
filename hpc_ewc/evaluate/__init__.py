"""Evaluate checkpoints: lm-eval computes the scores; this package gives it models and data, and keeps the results.

environment   variables to set before heavy imports; versions to record
task_files    YAML task files that include lm-eval's own and replace only the data
native        prompt words in each language
rows          functions named in those files: local rows, documents as text, TruthfulQA's score
sealed        rows of the hub's benchmarks, saved by `hpc-ewc prefetch`
task_loading  the lm-eval tasks of a cell
checkpoint    find, check and load a model and its tokenizer
models        the models of an element: the checkpoint and the judge
scoring       lm-eval's HFLM: BOS exactly once, a stop between batches, batches that fit the memory
vllm          the same with lm-eval's vLLM
bos           BOS exactly once, for both
cell          score one task in one language
fluency       perplexities from summed log-likelihoods
judge         perplexity of answers under another model
element       one array element: one checkpoint, a bundle of cells, a record of each
completion    `done.json` after the last cell of a run
"""
