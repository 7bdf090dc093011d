"""Checkpoints are asked questions: lm-eval does the scoring; this room feeds it and keeps what comes out.

environment   offline, quiet: set before anything heavy is imported
task_files    YAML that includes lm-eval's own task files and changes the data alone
native        the words around a question, in its own language
rows          what those files call: local rows, documents as text, TruthfulQA's score
checkpoint    is this folder a whole model with a tokenizer that fits; load it
scoring       lm-eval's HFLM with BOS exactly once, a stop between batches, and room for the first batch
cell          one task in one language: results and samples
fluency       perplexities from summed log-likelihoods
judge         another model's perplexity of the answers
element       one array element: one checkpoint, a bundle of cells, a record of each
whole         when the cells of a run are all there
vllm          lm-eval's vLLM in the scorer's place
bos           BOS exactly once, shared by both
"""
